// A web application that confirms addresses by mail: what the two tests beside it test.

import { randomInt, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';
import nodemailer from 'nodemailer';

const FORM = '<form method="post"><label>Address <input name="address"></label><button>Sign up</button></form>';

/** Start it on a free port; mail goes to the SMTP server that `smtpUrl` names. */
export async function startApp(smtpUrl) {
  const transport = nodemailer.createTransport(smtpUrl);
  const tokens = new Set(); // of links that were sent
  let url = '';

  async function signUp(address) {
    const token = randomUUID();
    tokens.add(token);
    const link = `${url}/confirm?token=${token}`;
    await transport.sendMail({
      from: 'Shop <shop@example.test>',
      to: address,
      subject: 'Confirm your address',
      text: `Your code is ${randomInt(100_000, 1_000_000)}. Or open ${link}`,
      html: `<p>Please <a href="${link}">confirm your address</a>.</p>`,
    });
    return '<h1>Look into your mailbox</h1>';
  }

  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, url);
    let page = FORM;
    if (request.method === 'POST') {
      page = await signUp(new URLSearchParams(await text(request)).get('address'));
    } else if (pathname === '/confirm') {
      page = tokens.delete(searchParams.get('token')) ? '<h1>Welcome</h1>' : '<h1>This link is not valid</h1>';
    }
    response.setHeader('Content-Type', 'text/html').end(page);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  url = `http://127.0.0.1:${server.address().port}`;
  return { url, close: () => server.close() };
}
