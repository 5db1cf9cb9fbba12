"""@microsoft/microsoft-graph-client for JavaScript, as npm has it, against a relay. Numbers are those of the checks."""

import base64
import hashlib
import os
from pathlib import Path

from tests.clients.conftest import JavaScript, ServedRelay, User
from tests.support.faulty_proxy import Fault

MESSAGE = """\
const message = (to) => ({
  subject: 'from JavaScript',
  body: { contentType: 'HTML', content: '<b>x</b>' },
  toRecipients: to ? [{ emailAddress: { address: to } }] : [],
});
"""


def test_09_send_mail(javascript: JavaScript, user: User) -> None:
    send = """
        const post = (to) => client.api('/me/sendMail').post({ message: message(to), saveToSentItems: 'false' });
        await post('%s');
        return failure(post('no address'));
    """
    error = javascript.run(MESSAGE + send % user.sink, token=user.name)
    assert (error["statusCode"], error["code"]) == (400, "ErrorInvalidRecipients")
    assert error["requestId"]
    assert user.arrived().content.count(b"Subject: from JavaScript") == 1


def test_10_without_a_token_over_http(
    javascript: JavaScript, served: ServedRelay, user: User
) -> None:
    """The library sends no token over plain HTTP."""
    url = "http://{}:{}".format(*served.relay.http)
    error = javascript.run("return failure(client.api('/me').get());", token=user.name, url=url)
    assert (error["statusCode"], error["code"]) == (401, "InvalidAuthenticationToken")


UPLOAD = """\
const data = require('fs').readFileSync('film.bin');
const draft = await client.api('/me/messages').post(message('%s'));
const path = `/me/messages/${draft.id}`;
const create = () => graph.LargeFileUploadTask.createUploadSession(client,
  `${path}/attachments/createUploadSession`,
  { AttachmentItem: { attachmentType: 'file', name: 'film.bin', size: data.length } });
const file = new graph.FileUpload(data, 'film.bin', data.length);
"""


def film(javascript: JavaScript) -> bytes:
    """A file of 12 MiB, which the program finds as film.bin."""
    data = os.urandom(12 << 20)
    Path(javascript.folder / "film.bin").write_bytes(data)
    return data


def assert_arrived(user: User, data: bytes) -> None:
    content = user.arrived().content
    encoded = (
        content.partition(b"filename=film.bin")[2] or content.partition(b'filename="film.bin"')[2]
    )
    decoded = base64.b64decode(encoded.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0])
    assert hashlib.sha256(decoded).digest() == hashlib.sha256(data).digest()


def test_13_resume_an_interrupted_upload(javascript: JavaScript, user: User) -> None:
    data = film(javascript)
    upload = """
        const session = await create();
        const put = (from, to) => fetch(session.url, { method: 'PUT', body: data.subarray(from, to),
          headers: { 'Content-Range': `bytes ${from}-${to - 1}/${data.length}` } });
        await put(0, 5 << 20);
        const outOfOrder = (await put(8 << 20, 9 << 20)).status;
        const { nextExpectedRanges } = await (await fetch(session.url)).json();
        const task = new graph.LargeFileUploadTask(client, file, session, { rangeSize: 5 << 20 });
        await task.resume();
        await client.api(`${path}/send`).post();
        return { outOfOrder, nextExpectedRanges };
    """
    found = javascript.run(MESSAGE + UPLOAD % user.sink + upload, token=user.name)
    assert found == {"outOfOrder": 416, "nextExpectedRanges": ["5242880-12582911"]}
    assert_arrived(user, data)


def test_21_504_after_commit(javascript: JavaScript, served: ServedRelay, user: User) -> None:
    path = f"/users/{user.address}/sendMail"
    served.proxy.faults.append(Fault("POST", path.lower(), 504, after_commit=True))
    send = f"await client.api('{path}').post({{ message: message('{user.sink}') }});"
    javascript.run(MESSAGE + send, token=user.name, url=served.proxy.url)
    tries = [one for one in served.proxy.requests if one.path.endswith(path)]
    assert [one.status for one in tries] == [504, 202]
    assert len(user.sent()) == 1
    user.arrived()
