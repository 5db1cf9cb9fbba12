// A test with Playwright: the mail leads back into the browser.
//
//   npm install --save-dev @playwright/test nodemailer /path/to/checkout/clients/node
//   npx playwright test

import { test as base, expect } from '@playwright/test';
import { Relay } from 'graph-relay';
import { startApp } from './app.mjs';

// Each worker has a relay of its own, and the application that sends to it.
const test = base.extend({
  relay: [
    async ({}, use) => {
      const relay = await Relay.start();
      await use(relay);
      await relay.stop();
    },
    { scope: 'worker', timeout: 60_000 },
  ],
  app: [
    async ({ relay }, use) => {
      const app = await startApp(relay.env.SMTP_URL);
      await use(app);
      app.close();
    },
    { scope: 'worker' },
  ],
});

test.beforeEach(({ relay }) => relay.clear());

test('a customer signs up and confirms the address', async ({ page, app, relay }) => {
  await page.goto(app.url);
  await page.getByLabel('Address').fill('ann@customer.example');
  await page.getByRole('button', { name: 'Sign up' }).click();
  await expect(page.getByRole('heading')).toHaveText('Look into your mailbox');

  const message = await relay.wait({ to: 'ann@customer.example', subject: 'Confirm*' });
  await page.goto(message.links[0]);
  await expect(page.getByRole('heading')).toHaveText('Welcome');
  await relay.assertNoMoreMail();
});
