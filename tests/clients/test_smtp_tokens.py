"""nodemailer and Jakarta Mail log in by SMTP with a bearer token (XOAUTH2)."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import run
from tests.clients.test_languages import COMMANDS
from tests.integration.test_token_logins import APP, issued
from tests.support.relay_process import RelayProcess, until

NODEMAILER = """
const [host, port, user, accessToken] = process.env.LOGIN.split(' ');
const transport = require('nodemailer').createTransport({
  host, port: Number(port), auth: { type: 'OAuth2', user, accessToken },
});
transport.sendMail({ from: user, to: 'alice@example.test', subject: 'js', text: 'x' }).then(
  () => console.log('sent'),
  (error) => console.log(error.code, error.response),
);
"""
JAKARTA_MAIL = """
import jakarta.mail.*;
import jakarta.mail.internet.*;
import java.util.Properties;

public class Send {
    public static void main(String[] none) throws Exception {
        String[] login = System.getenv("LOGIN").split(" ");
        Properties settings = new Properties();
        settings.put("mail.smtp.auth.mechanisms", "XOAUTH2");
        Session session = Session.getInstance(settings);
        MimeMessage message = new MimeMessage(session);
        message.setFrom(login[2]);
        message.setRecipients(Message.RecipientType.TO, "alice@example.test");
        message.setSubject("java");
        message.setText("x");
        try (Transport transport = session.getTransport("smtp")) {
            transport.connect(login[0], Integer.parseInt(login[1]), login[2], login[3]);
            transport.sendMessage(message, message.getAllRecipients());
            System.out.println("sent");
        } catch (AuthenticationFailedException error) {
            System.out.println("EAUTH " + error.getMessage());
        }
    }
}
"""
PROGRAMS = {"js": NODEMAILER, "java": JAKARTA_MAIL}
Send = Callable[[str, str], str]


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    config = {"smtp": [{"listen": "127.0.0.1:0", "role": "submission"}]}
    return serve_module(config=config, accounts=[APP])


@pytest.fixture(params=PROGRAMS)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def send(relay: RelayProcess, language: str, tmp_path: Path) -> Send:
    """Sends with a user's name and token; returns "sent", or what the program says of the login."""
    name, command = COMMANDS[language]
    program = tmp_path / name

    def sent(user: str, token: str) -> str:
        program.write_text(PROGRAMS[language])
        host, port = relay.smtp_address()
        [words] = command(program)
        return run(words, tmp_path, LOGIN=f"{host} {port} {user} {token}").strip()

    return sent


def test_the_token_of_an_application(relay: RelayProcess, send: Send, language: str) -> None:
    assert send("bob@example.test", issued(relay)) == "sent"
    until("it has arrived", lambda: language in relay.subjects("alice"))


def test_a_token_that_is_refused(relay: RelayProcess, send: Send, language: str) -> None:
    """The relay sends a challenge before the 535. nodemailer answers it; Jakarta Mail says what it is,
    and leaves. The log has the reason either way.
    """
    user = f"{language}@example.test"
    for token, reason in ((issued(relay), "not for this user"), ("eyJ0.eyJ.x", "not known here")):
        said = send(user, token)
        assert said.startswith("EAUTH 535" if language == "js" else "EAUTH 334 "), said
        until("it is in the log", lambda text=reason: is_logged(relay, user, text))


def is_logged(relay: RelayProcess, user: str, reason: str) -> bool:
    """Whether the log has a rejected login of the user, for this reason."""
    return any(user in line and reason in line for line in relay.log.splitlines())
