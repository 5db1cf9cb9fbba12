// An end-to-end test of a program that sends mail by Graph, with a relay of its own on free ports.
// It needs only a JDK, 17 or newer:
//
//   java EndToEnd.java
//
// RELAY_COMMAND is the command that starts Relay; it is "relay" if it is not set.

import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

public class EndToEnd {
    private final HttpClient http = HttpClient.newHttpClient();
    private final String address;
    private final String token;

    EndToEnd(String ready) {
        address = first(ready, "\"http\":\\s*\\[\\s*\"([^\"]+)\"");
        token = first(ready, "\"token\":\\s*\"([^\"]+)\"");
    }

    public static void main(String[] arguments) throws Exception {
        var folder = Files.createTempDirectory("relay-");
        var file = folder.resolve("ready.json");
        var relay = start(file);
        try {
            while (!Files.exists(file)) {
                check(relay.isAlive(), "relay dev runs");
                Thread.sleep(50);
            }
            var tests = new EndToEnd(Files.readString(file));
            tests.aNewCustomerGetsACode();
            tests.call("DELETE", "/relay/v1/messages", tests.token, "");
            tests.theSenderLearnsThatAnAddressDoesNotExist();
            System.out.println("all tests passed");
        } finally {
            relay.destroy();
            relay.waitFor();
            Files.deleteIfExists(file);
            Files.delete(folder);
        }
    }

    void aNewCustomerGetsACode() throws Exception {
        var start = cursor();
        welcome("ann@customer.example");

        var message = received(start, Map.of(
            "to", "ann@customer.example", "subject", "Welcome*", "state", "captured"));
        check(message.contains("\"sender\":\"shop@example.test\""), "the shop is the sender");

        var id = first(message, "\"id\":\"(\\w+)\"");
        var source = call("GET", "/relay/v1/messages/" + id + "/source", token, "");
        check(source.contains("\r\nSubject: Welcome\r\n"), "the source has the subject");

        var inbox = call("GET", "/v1.0/users/ann@customer.example/messages", token, "");
        check(first(inbox, "Your code is (\\d{6})").equals("481516"), "the code");
    }

    void theSenderLearnsThatAnAddressDoesNotExist() throws Exception {
        var start = cursor();
        welcome("ann+550@customer.example");

        var message = received(start, Map.of("to", "ann+550@customer.example", "state", "failed"));
        check(message.contains("550 5.1.1 "), "the reply of the remote host");
        check(message.contains("\"kind\":\"failure\""), "the report to the sender");
    }

    // The program under test.
    void welcome(String recipient) throws Exception {
        call("POST", "/v1.0/me/sendMail", "shop@example.test", """
            {"message": {"subject": "Welcome", "body": {"content": "Your code is 481516."},
             "toRecipients": [{"emailAddress": {"address": "%s"}}]}}""".formatted(recipient));
    }

    // Mail from before this moment is not behind the cursor.
    String cursor() throws Exception {
        return first(call("GET", "/relay/v1/messages?limit=1", token, ""), "\"cursor\":\"([^\"]+)\"");
    }

    // Wait for a message behind the cursor.
    String received(String after, Map<String, String> conditions) throws Exception {
        var query = conditions.entrySet().stream()
            .map(one -> one.getKey() + "=" + URLEncoder.encode(one.getValue(), StandardCharsets.UTF_8))
            .collect(Collectors.joining("&"));
        var found = call("GET", "/relay/v1/messages?wait=10&after=" + after + "&" + query, token, "");
        check(!found.contains("\"messages\":[]"), "a message with " + conditions);
        return found;
    }

    String call(String method, String path, String bearer, String body) throws Exception {
        var request = HttpRequest.newBuilder(URI.create("http://" + address + path))
            .header("Authorization", "Bearer " + bearer).header("Content-Type", "application/json")
            .method(method, body.isEmpty() ? BodyPublishers.noBody() : BodyPublishers.ofString(body));
        var answer = http.send(request.build(), BodyHandlers.ofString());
        check(answer.statusCode() < 300, method + " " + path + ": " + answer.statusCode() + " " + answer.body());
        return answer.body();
    }

    static Process start(Path ready) throws IOException {
        var command = new ArrayList<>(List.of(
            System.getenv().getOrDefault("RELAY_COMMAND", "relay"), "dev", "--no-demo", "--ready-file", ready.toString()));
        for (var name : List.of("--http", "--https", "--smtp", "--submission", "--submissions")) {
            command.addAll(List.of(name, "127.0.0.1:0"));
        }
        return new ProcessBuilder(command).redirectOutput(ProcessBuilder.Redirect.DISCARD)
            .redirectError(ProcessBuilder.Redirect.INHERIT).start();
    }

    static String first(String text, String pattern) {
        var found = Pattern.compile(pattern).matcher(text);
        check(found.find(), pattern + " in " + text);
        return found.group(1);
    }

    static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError("expected: " + what);
        }
    }
}
