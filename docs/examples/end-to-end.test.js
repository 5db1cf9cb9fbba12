// An end-to-end test of a program that sends mail, with a relay of its own on free ports.
//
//   npm install nodemailer
//   node --test
//
// RELAY is the command that starts Relay; it is "relay" if it is not set.

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs/promises');
const os = require('node:os');
const path = require('node:path');
const { after, afterEach, before, test } = require('node:test');
const nodemailer = require('nodemailer');

let child;
let folder;
let relay; // the contents of the ready file: http, https, smtp, ca, token, dir, pid

before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'relay-'));
  const file = path.join(folder, 'ready.json');
  const ports = ['http', 'https', 'smtp'].flatMap((name) => [`--${name}`, '127.0.0.1:0']);
  const words = ['dev', '--no-demo', '--ready-file', file, ...ports];
  child = spawn(process.env.RELAY ?? 'relay', words, { stdio: ['ignore', 'ignore', 'inherit'] });
  child.on('error', (error) => { throw error; });
  while (!relay) {
    assert.equal(child.exitCode, null, 'relay dev ended');
    relay = await fs.readFile(file, 'utf8').then(JSON.parse, () => null);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
});

afterEach(() => call('/relay/v1/messages', 'DELETE'));

after(async () => {
  child.kill();
  await once(child, 'exit');
  await fs.rm(folder, { recursive: true });
});

// Call Relay with the operator's token, which sees all messages.
async function call(where, method = 'GET') {
  const headers = { Authorization: `Bearer ${relay.token}` };
  const answer = await fetch(`http://${relay.http[0]}${where}`, { method, headers });
  assert.ok(answer.ok, `${method} ${where}: ${answer.status} ${answer.ok ? '' : await answer.text()}`);
  return answer;
}

// Mail from before this moment is not behind the cursor.
async function cursor() {
  return (await (await call('/relay/v1/messages?limit=1')).json()).cursor;
}

// Wait for a message behind the cursor.
async function received(after, conditions) {
  const query = new URLSearchParams({ after, wait: '10', ...conditions });
  const { messages } = await (await call(`/relay/v1/messages?${query}`)).json();
  assert.equal(messages.length, 1, `messages with ${JSON.stringify(conditions)}`);
  return messages[0];
}

// The program under test.
async function welcome(address) {
  const [host, port] = relay.smtp[0].split(':');
  const transport = nodemailer.createTransport({ host, port: Number(port) });
  await transport.sendMail({
    from: 'shop@example.test', to: address, subject: 'Welcome', text: 'Your code is 481516.',
  });
}

test('a new customer gets a code', async () => {
  const start = await cursor();
  await welcome('ann@customer.example');

  const message = await received(start, { to: 'ann@customer.example', subject: 'Welcome*', state: 'captured' });
  assert.equal(message.sender, 'shop@example.test');

  const source = await (await call(`/relay/v1/messages/${message.id}/source`)).text();
  assert.match(source, /^Subject: Welcome\r$/m);

  const inbox = await (await call('/v1.0/users/ann@customer.example/messages')).json();
  assert.match(inbox.value[0].body.content, /Your code is \d{6}\./);
});

test('the sender learns that an address does not exist', async () => {
  const start = await cursor();
  await welcome('ann+550@customer.example');

  const message = await received(start, { to: 'ann+550@customer.example', state: 'failed' });
  assert.match(message.recipients[0].reply, /^550 5\.1\.1 /);
  const report = message.steps.find((step) => step.name === 'report');
  assert.deepEqual([report.detail.kind, report.detail.to], ['failure', 'shop@example.test']);
});
