// A relay for tests: `relay dev` as a child process, which ends with this one; or a relay that runs already.
// docs/testing-javascript.md describes it, index.d.ts has its types.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

const { fetch, Date: { now } } = globalThis; // those of Node, also in a test that replaces them
const LISTENERS = ['http', 'https', 'smtp', 'submission', 'submissions'];
// The relay takes the place of this shell. Its other process reads a pipe that only this program can write
// to: when this program ends, in whatever way, the pipe does, and SIGTERM ends the relay.
const SHELL = 'exec 3<&0; (cat <&3; kill $$) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null';
const INSTALL = `'make run' in the checkout installs .venv/bin/relay; RELAY_COMMAND or Relay.start({ command }) names its path`;
const NOTHING = { Text: '', HTML: '', Attachments: [], Inline: [], links: [] };
const LOOK_MS = 50;
const WAIT_S_MAX = 60; // of one request
const LIST_MAX = 1000; // messages
const REMOVAL_MS_MAX = 10_000; // while a message is being delivered

const keyOf = (one) => one.id ?? one.submission_id; // until the queue has accepted it
const isTried = (one) => one.recipients.every(({ state }) => state !== 'queued');

/** Return the parts of HOST:PORT. */
function hostAndPort(text) {
  const [, host, port] = /^\[?([^/\]]+)\]?:(\d+)$/.exec(text) ?? [];
  if (!host) throw new TypeError(`smtp: found ${text}, expected HOST:PORT, such as 127.0.0.1:1025`);
  return { host, port: Number(port) };
}

/** A wait ended without what it waited for; the text says what there was instead. */
export class WaitTimeout extends Error { name = 'WaitTimeout'; }

/** A message as it was when it was read. */
export class Message {
  #relay;

  constructor(relay, journey, content) {
    this.#relay = relay;
    const { id, sender, subject, state, recipients, steps } = journey;
    Object.assign(this, { id, sender, subject, state, recipients, steps, text: content.Text, html: content.HTML });
    this.links = [...new Set(content.links.map((one) => one.target))];
    const part = (one) => relay.request(`/api/v1/message/${id}/part/${one.PartID}`, { as: 'arrayBuffer' });
    this.attachments = [...content.Attachments, ...content.Inline].map((one) => ({
      name: one.FileName, contentType: one.ContentType, content: async () => Buffer.from(await part(one)),
    }));
  }

  /** Return a login code, or the first match of a pattern, or of its group. */
  code(pattern) {
    const text = `${this.text}\n${this.html.replace(/<(style|script)\b.*?<\/\1>|<[^>]*>/gis, ' ')}`;
    const usual = [/\b(?:code|pin|otp)\b\D{0,40}\b(\d{4,8})\b/i, /\b\d{6}\b/, /\b\d{4,8}\b/];
    const found = (pattern ? [pattern] : usual).map((one) => text.match(one)).find(Boolean);
    if (!found) throw new Error(`no code in "${this.subject}": ${JSON.stringify(text.trim().slice(0, 500))}`);
    return found[1] ?? found[0];
  }

  /** Return the MIME. */
  async source() { return this.#relay.request(`/relay/v1/messages/${this.id}/source`, { as: 'text' }); }

  /** Return the reports that the sender has got about it: bounces, and notices of a delay. */
  async reports() {
    const ids = (await this.#relay.message(this.id)).steps.flatMap((one) => one.detail.report_id ?? []);
    return Promise.all(ids.map((one) => this.#relay.message(one)));
  }
}

/** A relay; Relay.start() makes one, Relay.connect() uses one that runs. */
export class Relay {
  #child; // undefined: Relay.connect() did not start it
  #log = ''; // the end of its standard error
  #seen = new Set(); // ids of messages that were returned
  #scenario = {};

  /** Start a relay on free ports. */
  static async start({ command = process.env.RELAY_COMMAND || 'relay', args = [], timeout = 30 } = {}) {
    const relay = new Relay();
    const folder = await fs.promises.mkdtemp(`${tmpdir()}/relay-`);
    const file = `${folder}/ready.json`;
    const words = fs.existsSync(command) ? [command] : command.split(/\s+/).filter(Boolean);
    const ports = LISTENERS.flatMap((one) => [`--${one}`, '127.0.0.1:0']);
    words.push('dev', '--no-demo', '--ready-file', file, ...ports, ...args);
    // detached: Ctrl-C ends this program, and thereby the relay
    const how = { stdio: ['pipe', 'ignore', 'pipe'], detached: true };
    const child = (relay.#child = spawn('/bin/sh', ['-c', SHELL, 'sh', ...words], how));
    child.stderr.setEncoding('utf8').on('data', (text) => (relay.#log = (relay.#log + text).slice(-4000)));
    child.on('exit', () => child.stdin.destroy());
    try {
      await once(child, 'spawn');
      for (const one of [child, child.stdin, child.stderr]) one.unref(); // a forgotten stop() delays no end
      for (const end = now() + timeout * 1000; !relay.url; await sleep(LOOK_MS)) {
        relay.#check(command);
        if (now() > end) throw new Error(`relay dev is not ready after ${timeout} s${relay.#lastLines()}`);
        await fs.promises.readFile(file, 'utf8').then((text) => relay.#useReady(JSON.parse(text)), () => {});
      }
    } catch (error) {
      await relay.stop();
      throw error;
    } finally {
      await fs.promises.rm(folder, { recursive: true, force: true });
    }
    return relay;
  }

  /** Use a relay that runs, such as that of a container. */
  static async connect({ url = process.env.RELAY_URL, token = process.env.RELAY_TOKEN, smtp = process.env.RELAY_SMTP } = {}) {
    for (const [name, value] of Object.entries({ url, smtp })) {
      if (!value) throw new Error(`Relay.connect(): found no ${name}; pass it, or set RELAY_${name.toUpperCase()}`);
    }
    const relay = new Relay();
    relay.#use({ url: url.replace(/\/+$/, ''), token: token || undefined, smtp });
    await relay.request('/relay/v1/messages?limit=1'); // throws if it does not answer, or refuses the token
    return relay;
  }

  #useReady({ http, token, ca, pid, ...ready }) {
    const [smtp, submission, submissions] = LISTENERS.slice(2).map((one) => ready[one][0]);
    Object.assign(this, { submission: hostAndPort(submission), submissions: hostAndPort(submissions), ca, pid });
    this.#use({ url: `http://${http[0]}`, token, smtp });
    this.env.NODE_EXTRA_CA_CERTS = ca;
  }

  #use({ url, token, smtp }) {
    const { host, port } = hostAndPort(smtp);
    Object.assign(this, { smtp: { host, port }, url, graph: `${url}/v1.0`, token });
    this.env = { SMTP_HOST: host, SMTP_PORT: `${port}`, SMTP_URL: `smtp://${smtp}`, RELAY_URL: url, RELAY_SMTP: smtp };
    if (token) this.env.RELAY_TOKEN = token;
  }

  /** Request a path as an operator; return the answer, JSON by default, or throw what the relay says. */
  async request(path, { method = 'GET', body, as = 'json' } = {}) {
    const login = path.startsWith('/api/') ? `Basic ${btoa(`any:${this.token}`)}` : `Bearer ${this.token}`;
    const headers = { 'Content-Type': 'application/json', Accept: 'application/json' };
    if (this.token) headers.Authorization = login;
    const answer = await fetch(this.url + path, { method, headers, body: JSON.stringify(body) }).catch((error) => {
      this.#check();
      throw new Error(`${method} ${this.url}${path}: ${error.cause?.message ?? error.message}`);
    });
    if (answer.ok) return answer[as]();
    const { error } = await answer.json().catch(() => ({}));
    const text = `${method} ${path}: ${answer.status} ${error?.message ?? answer.statusText}`;
    throw Object.assign(new Error(text), { status: answer.status });
  }

  /** Return the message with an id as it is now. */
  async message(id) {
    this.#seen.add(id);
    const journey = await this.request(`/relay/v1/messages/${encodeURIComponent(id)}`);
    const parts = [`/api/v1/message/${journey.id}`, `/relay/v1/messages/${journey.id}/checks`];
    const content = await Promise.all(parts.map((one) => this.request(one))).catch((error) => {
      if (error.status !== 404) throw error;
      return [NOTHING]; // not accepted yet, or gone
    });
    return new Message(this, journey, Object.assign({}, ...content));
  }

  /** Return the newest 1,000 messages that match, the oldest first, when what is in progress has ended. */
  async messages(conditions) {
    await this.settle();
    return this.#take((await this.#list(conditions)).messages);
  }

  /** Return the oldest message that matches and was not returned before, as soon as there is one. */
  async wait(conditions) { return (await this.waitForCount(1, conditions))[0]; }

  /** The same for several. */
  async waitForCount(count, { timeout = 10, ...conditions } = {}) {
    for (const end = now() + timeout * 1000; ; await sleep(LOOK_MS)) {
      const answer = await this.#list(conditions, Math.min(Math.max(end - now(), 1) / 1000, WAIT_S_MAX));
      const found = answer.messages.filter((one) => !this.#seen.has(keyOf(one)) && (conditions.state || isTried(one)));
      if (found.length >= count) return this.#take(found.slice(0, count));
      if (now() >= end) {
        const what = `${count} with ${JSON.stringify(conditions)} within ${timeout} s`;
        throw new WaitTimeout(`found ${found.length} messages, expected ${what}\n${await this.#situation(answer)}`);
      }
    }
  }

  /** Wait until nothing is in progress; throw if a message matches that was not returned before. */
  async assertNoMoreMail(conditions) {
    await this.settle();
    const more = (await this.#list(conditions)).messages.filter((one) => !this.#seen.has(keyOf(one)));
    if (more.length) throw new Error(`${more.length} more than the test has seen:\n${this.#lines(more)}`);
  }

  /** Wait until nothing is queued and due, or in progress. */
  async settle() { await this.clock.advance({ seconds: 0.001 }); }

  /** Delete all mail, and what was said of the internet; with conditions, only the mail that matches. */
  async clear(conditions) {
    if (conditions) return this.#clearMatching(conditions);
    await this.internet.use({});
    await this.request('/relay/v1/messages', { method: 'DELETE' });
    this.#seen.clear();
  }

  async #clearMatching(conditions) {
    let found;
    do {
      found = (await this.#list(conditions)).messages;
      for (const one of found) await this.#remove(keyOf(one));
    } while (found.length === LIST_MAX);
  }

  async #remove(id) {
    for (const end = now() + REMOVAL_MS_MAX; ; await sleep(LOOK_MS)) {
      try {
        return await this.request(`/relay/v1/messages/${id}`, { method: 'DELETE', as: 'text' });
      } catch (error) {
        if (error.status === 404) return; // another program has removed it
        if (error.status !== 409 || now() > end) throw error;
      }
    }
  }

  clock = {
    /** Let time pass, and return when all that became due is done. */
    advance: async ({ days = 0, hours = 0, minutes = 0, seconds = 0 }) => {
      const passed = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
      await this.request('/relay/v1/dev/clock', { method: 'POST', body: { advance_s: passed } });
    },
  };

  internet = {
    /** Replace the scenario. */
    use: async (scenario) => {
      await this.request('/relay/v1/dev/internet', { method: 'PUT', body: scenario });
      this.#scenario = scenario;
    },
    /** Add what a host replies for recipients that match; replies are used in their order. */
    reply: async (address, reply) => {
      const [, recipient, name] = /^(.*)@([^@]+)$/.exec(address) ?? [];
      if (!name) throw new TypeError(`found ${address}, expected an address such as joe@gmail.com or *@gmail.com`);
      const scenario = { domain: [], ...structuredClone(this.#scenario) };
      let table = scenario.domain.find((one) => one.name === name);
      if (!table) scenario.domain.push((table = { name }));
      (table.reply ??= []).push({ verb: 'RCPT', recipient, ...(typeof reply === 'string' ? { reply } : reply) });
      await this.internet.use(scenario);
    },
  };

  /** End the relay; its mail is removed. After connect(), only forget what was returned. */
  async stop() {
    const child = this.#child;
    this.#seen.clear();
    if (!child?.pid || this.#hasEnded) return;
    const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    child.ref();
    child.stdin.destroy();
    await once(child, 'exit');
    clearTimeout(timer);
  }

  async #list(conditions = {}, wait = 0) {
    const wrong = Object.entries(conditions).find(([, value]) => typeof value !== 'string');
    if (wrong) throw new TypeError(`${wrong[0]}: found ${wrong[1]}, expected a text; * is any text in it`);
    const query = new URLSearchParams({ ...conditions, limit: LIST_MAX, wait });
    const answer = await this.request(`/relay/v1/messages?${query}`);
    return { ...answer, messages: answer.messages.reverse() }; // the oldest first
  }

  async #take(journeys) {
    journeys.forEach((one) => this.#seen.add(keyOf(one)));
    const found = [];
    for (const one of journeys) found.push(await this.message(keyOf(one)));
    return found;
  }

  /** Return what there is instead of what a wait looked for. */
  async #situation({ nearest, refused = [] }) {
    const { messages } = await this.#list();
    const arrived = messages.length ? this.#lines(messages) : `  nothing; the relay is at ${this.env.SMTP_URL}`;
    const near = nearest?.compared.filter((one) => !one.matches).map((one) => `\n  ${one.field}: expected ${one.expected}, found ${one.found}`) ?? [];
    const lines = refused.map((one) => `\n  ${one.reply}: ${one.sender} -> ${one.recipients} "${one.subject}"`);
    const titled = (title, all) => (all.length ? `\n${title}:${all.join('')}` : '');
    return `Arrived:\n${arrived}${titled('Nearest', near)}${titled('Refused', lines)}${this.#lastLines()}`;
  }

  #lines(journeys) {
    const to = (one) => `${one.address} ${one.state}${one.reply ? ` (${one.reply})` : ''}`;
    const seen = (one) => (this.#seen.has(keyOf(one)) ? ' - returned before' : '');
    const line = (one) => `  "${one.subject}" from ${one.sender || '<>'} to ${one.recipients.map(to).join(', ')}`;
    return journeys.slice(-10).map((one) => line(one) + seen(one)).join('\n');
  }

  get #hasEnded() { return (this.#child?.exitCode ?? this.#child?.signalCode ?? null) !== null; }

  /** Throw if the relay has ended. */
  #check(command) {
    if (!this.#hasEnded) return;
    const { exitCode, signalCode } = this.#child;
    const ended = `relay dev has ended (${signalCode ?? `exit code ${exitCode}`})`;
    const unknown = command && [126, 127].includes(exitCode); // what a shell answers
    const text = unknown ? `the command ${JSON.stringify(command)} cannot be run: ${INSTALL}` : ended;
    throw new Error(text + this.#lastLines());
  }

  #lastLines() {
    const lines = this.#log.trim().split('\n').slice(-10);
    return lines[0] ? `\nLast lines of relay dev:\n${lines.map((one) => `  ${one}`).join('\n')}` : '';
  }
}
