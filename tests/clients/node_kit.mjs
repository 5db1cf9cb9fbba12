// clients/node, with node --test: a relay of its own, or with RELAY_URL the one that runs there. test_node_kit.py runs it, and
// checks its types.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { Relay, WaitTimeout } from 'graph-relay';
import nodemailer from 'nodemailer';

const isOurs = !process.env.RELAY_URL;
const relay = isOurs ? await Relay.start({ args: ['--domain', 'shop.test'] }) : await Relay.connect(); // ends with this process
const transport = nodemailer.createTransport({ ...relay.smtp, ignoreTLS: true });

beforeEach(() => relay.clear());

async function send(/** @type {string} */ to, /** @type {string} */ subject, more = {}) {
  await transport.sendMail({ from: 'app@shop.test', to, subject, text: 'x', ...more });
}

test('each message is returned once, the oldest first', async () => {
  for (const one of ['1', '2', '3']) await send('ann@gmail.com', one);
  const both = await relay.waitForCount(2, { to: 'ANN@*' });
  const last = await relay.wait({ mailbox: 'ann@gmail.com' });
  assert.deepEqual([...both, last].map((one) => one.subject), ['1', '2', '3']);
  assert.deepEqual([last.sender, last.state, last.recipients[0].address], ['app@shop.test', 'captured', 'ann@gmail.com']);
  await relay.assertNoMoreMail();
  assert.equal((await relay.messages({ subject: '2' })).length, 1);
});

test('a wait ends when the message has been tried', async (context) => {
  context.mock.method(globalThis, 'fetch', () => assert.fail('this is of the program under test'));
  const waiting = relay.wait({ to: 'bob@shop.test' });
  await send('ann@gmail.com', 'Other');
  await send('bob@shop.test', 'Hello');
  assert.equal((await waiting).state, 'delivered');
  await send('ann+slow1@gmail.com', 'Slow');
  assert.equal((await relay.wait({ subject: 'Slow' })).state, 'relayed');
});

test('the content', async () => {
  const html = '<style>p { order: 1234 }</style><p>Code <b>7788</b> <a href="https://app.test/?a=1&amp;b=2">x</a>';
  await send('ann@gmail.com', 'Ünï', { html, text: 'see https://app.test/text.', attachments: [{ filename: 'a.txt', content: 'é' }] });
  const message = await relay.wait();
  assert.deepEqual([message.subject, message.text.trim()], ['Ünï', 'see https://app.test/text.']);
  assert.deepEqual(message.links, ['https://app.test/?a=1&b=2', 'https://app.test/text']);
  assert.deepEqual([message.code(), message.code(/app\.(\w+)/)], ['7788', 'test']);
  assert.throws(() => message.code(/nothing/), /no code in "Ünï": "see https/);
  const [attachment] = message.attachments;
  assert.deepEqual([attachment.name, attachment.contentType, `${await attachment.content()}`], ['a.txt', 'text/plain', 'é']);
  assert.match(await message.source(), /^From: app@shop\.test\r$/m);
});

test('failures of hosts, and the clock', async () => {
  await relay.internet.reply('joe@gmail.com', { reply: '452 4.2.2 full', times: 1 });
  await relay.internet.reply('*@gmail.com', '550 5.1.1 no such user');
  await send('joe@gmail.com', 'Invoice');
  const sent = await relay.wait({ to: 'joe@gmail.com' });
  assert.deepEqual([sent.state, sent.recipients[0].reply], ['deferred', '452 4.2.2 full']);
  await relay.clock.advance({ minutes: 30 });
  assert.equal((await relay.wait({ kind: 'report' })).recipients[0].address, 'app@shop.test');
  assert.deepEqual((await sent.reports()).map((one) => one.subject), ['Undeliverable: Invoice']);
  await relay.assertNoMoreMail();
  await assert.rejects(relay.wait({ to: 'no@*', timeout: 0.1 }), /"Undeliverable: Invoice" from <> to app@shop\.test/);
  await assert.rejects(relay.internet.reply('joe@gmail.com', 'no'), /400 .*found "no", expected a reply such as "550/);
  await assert.rejects(relay.internet.reply('gmail.com', '550 no'), /found gmail.com, expected an address/);
});

test('a wait that fails says what there is', async () => {
  await assert.rejects(relay.wait({ timeout: 0.1 }), new RegExp(`Arrived:\n  nothing; the relay is at smtp://${relay.smtp.host}:${relay.smtp.port}`));
  await send('ann@gmail.com', 'Welcome');
  await assert.rejects(transport.sendMail({ to: 'x@gmail.com', from: 'a@b.test', subject: 'x', attachments: [{ filename: 'a.exe' }] }));
  await relay.wait();
  await assert.rejects(relay.waitForCount(2, { to: 'anne@*', subject: 'Welc*', timeout: 0.1 }), (error) => {
    assert.ok(error instanceof WaitTimeout);
    assert.match(error.message, /^found 0 messages, expected 2 with {"to":"anne@\*","subject":"Welc\*"} within 0.1 s\n/);
    assert.match(error.message, /^Nearest:\n {2}to: expected anne@\*, found ann@gmail.com\nRefused:$/m);
    assert.match(error.message, /"Welcome" from app@shop.test to ann@gmail.com captured .* - returned before$/m);
    assert.match(error.message, /^Refused:\n {2}550 .*: a@b.test -> x@gmail.com "x"$/m);
    return true;
  });
  await send('ann@gmail.com', 'More');
  await assert.rejects(relay.assertNoMoreMail({ to: 'ann@*' }), /^Error: 1 more than the test has seen:\n {2}"More" from/);
  await assert.rejects(relay.wait(/** @type {any} */ ({ to: /ann/ })), /to: found \/ann\/, expected a text/);
  await assert.rejects(relay.wait(/** @type {any} */ ({ form: 'x' })), /400 The parameter 'form' is unknown/);
});

test('workers on one relay find and delete their own mail', async () => {
  const { url, token, smtp } = relay;
  const [ann, bob] = await Promise.all([1, 2].map(() => Relay.connect({ url: `${url}/`, token, smtp: `${smtp.host}:${smtp.port}` })));
  assert.deepEqual([ann.submission, ann.submissions, ann.ca, ann.pid], [undefined, undefined, undefined, undefined]);
  assert.deepEqual([ann.smtp, ann.graph, ann.env.RELAY_URL], [smtp, relay.graph, url]);
  await relay.internet.reply('*@gmail.com', '550 5.1.1 no such user');
  for (const one of ['ann@gmail.com', 'bob@gmail.com', 'bob+slow1@gmail.com']) await send(one, 'Code');
  const found = await Promise.all([ann.wait({ to: 'ann@*' }), bob.wait({ to: 'bob@*' })]);
  assert.deepEqual(found.map((one) => one.recipients[0].address), ['ann@gmail.com', 'bob@gmail.com']);
  await ann.assertNoMoreMail({ to: 'ann@*' });
  await bob.clear({ to: 'bob*' });
  assert.deepEqual((await bob.messages({ kind: 'mail' })).map((one) => one.id), [found[0].id]);
  await assert.rejects(bob.clear(/** @type {any} */ ({ to: undefined })), /to: found undefined, expected a text/);
  await send('bob@gmail.com', 'More');
  assert.equal((await relay.wait({ subject: 'More' })).state, 'failed');
  await ann.stop();
  assert.equal((await ann.wait({ to: 'ann@*' })).id, found[0].id);
});

test('a relay that cannot be used', async () => {
  const given = { url: 'http://127.0.0.1:9', token: 'wrong', smtp: '127.0.0.1:1025' };
  await assert.rejects(Relay.connect({ ...given, url: '' }), /found no url; pass it, or set RELAY_URL$/);
  await assert.rejects(Relay.connect({ ...given, smtp: '' }), /found no smtp; pass it, or set RELAY_SMTP$/);
  await assert.rejects(Relay.connect({ ...given, smtp: 'smtp://mail' }), /smtp: found smtp:\/\/mail, expected HOST:PORT/);
  await assert.rejects(Relay.connect(given), /GET http:\/\/127\.0\.0\.1:9\/relay\/v1\/messages\?limit=1: /);
  if (isOurs) await Relay.connect({ ...given, url: relay.url, token: '' });
  else await assert.rejects(Relay.connect({ ...given, url: relay.url }), /: 401 /);
});

test('a relay that does not start', async () => {
  const slow = `${process.execPath} -e setTimeout(()=>{},60000)`;
  for (const command of ['no-such-relay', '/etc/passwd']) {
    await assert.rejects(Relay.start({ command }), new RegExp(`"${command}" cannot be run: 'make run' .*; RELAY_COMMAND`));
  }
  await assert.rejects(Relay.start({ args: ['--nope'] }), /ended \(exit code 64\)\nLast lines of relay dev:\n[^]*--nope/);
  await assert.rejects(Relay.start({ command: slow, timeout: 0.2 }), /not ready after 0.2 s/);
});

/** Wait until a relay has ended. */
async function ended(/** @type {string} */ url) {
  for (const end = Date.now() + 20_000; Date.now() < end; await sleep(20)) {
    try { await fetch(url); } catch { return; }
  }
  assert.fail('the relay is still there');
}

test('a relay ends with stop()', async () => {
  const other = await Relay.start();
  await Promise.all([other.stop(), other.stop()]);
  await assert.rejects(fetch(other.url));
  await assert.rejects(other.wait(), /relay dev has ended \(exit code 0\)/);
});

const START = "import('graph-relay').then(({ Relay }) => Relay.start()).then((one) => say(one.url))";

test('a relay ends with its thread', async () => {
  const worker = new Worker(`const say = (url) => require('node:worker_threads').parentPort.postMessage(url); ${START}`, { eval: true });
  const [url] = await once(worker, 'message');
  await worker.terminate();
  await ended(url);
});

for (const [how, then] of [['ends', ''], ['is killed', '.then(() => setInterval(() => {}, 1000))']]) {
  test(`a relay ends when its process ${how}`, async () => {
    const child = spawn(process.execPath, ['-e', `const say = console.log; ${START}${then}`], { stdio: ['ignore', 'pipe', 'inherit'] });
    const [text] = await once(child.stdout, 'data');
    if (then) child.kill('SIGKILL');
    await once(child, 'exit');
    await ended(`${text}`.trim());
  });
}
