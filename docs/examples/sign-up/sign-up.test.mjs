// Tests with vitest.
//
//   npm install --save-dev vitest nodemailer /path/to/checkout/clients/node
//   npx vitest run

import { Relay } from 'graph-relay';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { startApp } from './app.mjs';

let relay;
let app;

beforeAll(async () => {
  relay = await Relay.start();
  app = await startApp(relay.env.SMTP_URL);
}, 60_000);

beforeEach(() => relay.clear());

afterAll(async () => {
  app.close();
  await relay.stop();
});

async function signUp(address) {
  await fetch(app.url, { method: 'POST', body: new URLSearchParams({ address }) });
}

test('a new customer gets a code and a link', async () => {
  await signUp('ann@customer.example');

  const message = await relay.wait({ to: 'ann@customer.example', subject: 'Confirm*' });
  expect(message.code()).toMatch(/^\d{6}$/);
  const page = await fetch(message.links[0]);
  expect(await page.text()).toContain('Welcome');
  await relay.assertNoMoreMail();
});

test('the shop learns that an address does not exist', async () => {
  await relay.internet.reply('joe@gmail.com', '550 5.1.1 no such user');
  await signUp('joe@gmail.com');

  const message = await relay.wait({ to: 'joe@gmail.com', state: 'failed' });
  const [report] = await message.reports();
  expect(report.subject).toBe('Undeliverable: Confirm your address');
  expect(report.recipients[0].address).toBe('shop@example.test');
});

test('a full mailbox gets the message an hour later', async () => {
  await relay.internet.reply('joe@gmail.com', { reply: '452 4.2.2 mailbox full', times: 2 });
  await signUp('joe@gmail.com');

  const message = await relay.wait({ to: 'joe@gmail.com' });
  expect(message.state).toBe('deferred');
  await relay.clock.advance({ hours: 1 });
  expect((await relay.message(message.id)).state).toBe('relayed');
});
