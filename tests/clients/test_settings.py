"""The settings in docs/snippets.md are enough: each program sends with them, and with a login too.

The program of a row sends two messages: with the setting as it is written there, apart from the port,
and with an unknown login in addition. Neither names TLS.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients import test_languages
from tests.clients.conftest import run
from tests.clients.test_languages import COMMANDS, PAGE, RECIPIENT, program_of, with_its_ports
from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import until

SENDER = "shop@elsewhere.example"
PHP = Path("/usr/share/php")
NOT_TESTED = {"Laravel", "MailKit", "Rails", "Spring Boot"}  # no registry that tests use has them

ROWS = {
    name: (setting, tested)
    for name, setting, tested in re.findall(
        r"^\| ([\w' .-]+?) \| `([^`]+)` \| (yes|not tested) \|$", PAGE.read_text(), re.MULTILINE
    )
}
LOGIN, PASSWORD = "apikey", "SG.secret"

# By the name of the row: the language, and a program, in which SETTING is what the page says.
PROGRAMS = {
    "aiosmtplib": (
        "python",
        """\
import asyncio
import aiosmtplib
from email.message import EmailMessage

async def send(subject, **login):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "SENDER", "RECIPIENT", subject
    await aiosmtplib.send(message, SETTING, **login)

asyncio.run(send("NAME 1"))
asyncio.run(send("NAME 2", username="LOGIN", password="PASSWORD"))
""",
    ),
    "Django": (
        "python",
        """\
from django.conf import settings
from django.core.mail import send_mail

settings.configure(SETTING)
send_mail("NAME 1", "x", "SENDER", ["RECIPIENT"])
send_mail("NAME 2", "x", "SENDER", ["RECIPIENT"], auth_user="LOGIN", auth_password="PASSWORD")
""",
    ),
    "Flask-Mail": (
        "python",
        """\
from flask import Flask
from flask_mail import Mail, Message

app = Flask("shop")
app.config.update(SETTING)
for subject in ("NAME 1", "NAME 2"):
    with app.app_context():
        Mail(app).send(Message(subject, recipients=["RECIPIENT"], sender="SENDER", body="x"))
    app.config.update(MAIL_USERNAME="LOGIN", MAIL_PASSWORD="PASSWORD")
""",
    ),
    "fastapi-mail": (
        "python",
        """\
import asyncio
from fastapi_mail import ConnectionConfig, FastMail, MessageSchema, MessageType

def send(subject, **login):
    config = ConnectionConfig(SETTING, MAIL_FROM="SENDER", **login)
    message = MessageSchema(
        subject=subject, recipients=["RECIPIENT"], body="x", subtype=MessageType.plain
    )
    asyncio.run(FastMail(config).send_message(message))

send("NAME 1", MAIL_USERNAME="", MAIL_PASSWORD="", USE_CREDENTIALS=False)
send("NAME 2", MAIL_USERNAME="LOGIN", MAIL_PASSWORD="PASSWORD")
""",
    ),
    "nodemailer": (
        "js",
        """\
const nodemailer = require('nodemailer');

async function send(subject, login) {
  const transport = nodemailer.createTransport({ ...SETTING, ...login });
  await transport.sendMail({ from: 'SENDER', to: 'RECIPIENT', subject, text: 'x' });
}
send('NAME 1', {}).then(() => send('NAME 2', { auth: { user: 'LOGIN', pass: 'PASSWORD' } }));
""",
    ),
    "Jakarta Mail": (
        "java",
        """\
import jakarta.mail.Authenticator;
import jakarta.mail.Message;
import jakarta.mail.PasswordAuthentication;
import jakarta.mail.Session;
import jakarta.mail.Transport;
import jakarta.mail.internet.MimeMessage;
import java.util.Properties;

public class Send {
    static void send(String subject, Session session) throws Exception {
        var message = new MimeMessage(session);
        message.setFrom("SENDER");
        message.setRecipients(Message.RecipientType.TO, "RECIPIENT");
        message.setSubject(subject);
        message.setText("x");
        Transport.send(message);
    }

    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        SETTING
        send("NAME 1", Session.getInstance(properties));
        properties.put("mail.smtp.auth", "true");
        send("NAME 2", Session.getInstance(properties, new Authenticator() {
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication("LOGIN", "PASSWORD");
            }
        }));
    }
}
""",
    ),
    "PHPMailer": (
        "php",
        """\
<?php
require "/usr/share/php/libphp-phpmailer/autoload.php";

foreach (["NAME 1", "NAME 2"] as $subject) {
    $mail = new PHPMailer\\PHPMailer\\PHPMailer(true);
    SETTING
    if ($subject == "NAME 2") {
        [$mail->SMTPAuth, $mail->Username, $mail->Password] = [true, "LOGIN", "PASSWORD"];
    }
    $mail->setFrom("SENDER");
    $mail->addAddress("RECIPIENT");
    [$mail->Subject, $mail->Body] = [$subject, "x"];
    $mail->send();
}
""",
    ),
    "Symfony Mailer": (
        "php",
        """\
<?php
require "/usr/share/php/Symfony/Component/Mailer/autoload.php";

[, $dsn] = explode("=", "SETTING", 2);
$ways = ["NAME 1" => $dsn, "NAME 2" => str_replace("//", "//LOGIN:PASSWORD@", $dsn)];
foreach ($ways as $subject => $way) {
    $mailer = new Symfony\\Component\\Mailer\\Mailer(Symfony\\Component\\Mailer\\Transport::fromDsn($way));
    $mailer->send((new Symfony\\Component\\Mime\\Email())
        ->from("SENDER")->to("RECIPIENT")->subject($subject)->text("x"));
}
""",
    ),
    "Ruby's mail": (
        "ruby",
        """\
require "mail"

{ "NAME 1" => {}, "NAME 2" => { user_name: "LOGIN", password: "PASSWORD" } }.each do |about, login|
  message = Mail.new(from: "SENDER", to: "RECIPIENT", subject: about, body: "x")
  message.delivery_method :smtp, SETTING, **login
  message.deliver!
end
""",
    ),
}
NEEDED = {
    "PHPMailer": PHP / "libphp-phpmailer/autoload.php",
    "Symfony Mailer": PHP / "Symfony/Component/Mailer/autoload.php",
}

trust = test_languages.trust
command = test_languages.command


def found(plain_dev: DevProcess, subject: str) -> dict[str, str]:
    """The account of the client that sent a message, by its subject."""

    def listed() -> dict[str, str]:
        query = f"/relay/v1/messages?subject={subject}+*"
        answer = plain_dev.graph("GET", query, token=OPERATOR)
        return {one["subject"]: one["client"]["account"] for one in answer.json()["messages"]}

    return until("both are there", lambda: found if len(found := listed()) == 2 else {})


def test_every_row_is_tested_or_says_that_it_is_not() -> None:
    assert {name for name, (_, tested) in ROWS.items() if tested == "yes"} == {*PROGRAMS}
    assert {name for name, (_, tested) in ROWS.items() if tested != "yes"} == NOT_TESTED


@pytest.mark.parametrize("name", PROGRAMS)
def test_host_and_port_are_enough(plain_dev: DevProcess, tmp_path: Path, name: str) -> None:
    if name in NEEDED and not NEEDED[name].exists():
        pytest.skip(f"Debian's package with {NEEDED[name].parent.name} is not installed")
    language, text = PROGRAMS[name]
    if name == "Ruby's mail":
        check = [program_of("ruby"), "-e", "require 'mail'"]
        if subprocess.run(check, capture_output=True, check=False).returncode:
            pytest.skip("ruby-mail is not installed")
    subject = re.sub(r"\W", "-", name)
    words = {
        "SETTING": with_its_ports(plain_dev, ROWS[name][0]),
        "SENDER": SENDER,
        "LOGIN": LOGIN,
        "RECIPIENT": RECIPIENT,
        "PASSWORD": PASSWORD,
        "NAME": subject,
    }
    for word, value in words.items():
        text = re.sub(rf"\b{word}\b", lambda _found, value=value: value, text)
    file, commands = COMMANDS[language]
    path = tmp_path / file
    path.write_text(text)

    for one in commands(path):
        run(one, tmp_path)

    accounts = found(plain_dev, subject)
    assert accounts == {f"{subject} 1": "", f"{subject} 2": f"{LOGIN}@example.test"}


def test_php_sends_by_sendmail(plain_dev: DevProcess, tmp_path: Path, command: str) -> None:
    """docs/development.md has the setting."""
    page = (PAGE.parent / "development.md").read_text()
    [setting] = re.findall(r'^sendmail_path = "(.+)"$', page, re.MULTILINE)
    path = setting.replace("/path/to/.venv/bin/relay", command)
    program = f"exit(mail('{RECIPIENT}', 'By mail()', 'x', 'Bcc: bob@example.test') ? 0 : 1);"
    place = plain_dev.ready["smtp"][0]
    php = [program_of("php"), "-d", f"sendmail_path={path}", "-r", program]
    run(php, tmp_path, RELAY_SENDMAIL=place, USER="www-data")
    [message] = until("it is there", lambda: plain_dev.messages("inbox", token="bob"))
    assert message["subject"] == "By mail()"
