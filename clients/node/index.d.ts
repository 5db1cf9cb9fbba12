// Needs @types/node.

export interface StartOptions {
  /** A path, or words with spaces between; RELAY_COMMAND by default, else `relay` on the PATH. */
  command?: string;
  /** Further options of `relay dev`, such as ['--domain', 'shop.test']. */
  args?: string[];
  /** Seconds until it must be ready; 30 by default. */
  timeout?: number;
}

/** Each is by default the variable of the environment. */
export interface ConnectOptions {
  /** The URL of the pages and APIs; RELAY_URL. */
  url?: string;
  /** RELAY_TOKEN; needed only where the relay asks for one. */
  token?: string;
  /** HOST:PORT; RELAY_SMTP. */
  smtp?: string;
}

/** Whole values, without regard to case; `*` is any text, `?` one character. */
export interface Conditions {
  to?: string;
  sender?: string;
  subject?: string;
  /** The address of the sender or of a recipient. */
  mailbox?: string;
  /** A recipient's state, such as `captured`, or `final`. A wait ends when a recipient is in it. */
  state?: string;
  /** Only messages that programs sent, or only reports to their senders. */
  kind?: 'mail' | 'report';
  /** A search as in the pages, such as `has:attachment invoice`. */
  q?: string;
}

export interface WaitOptions extends Conditions {
  /** Seconds; 10 by default. */
  timeout?: number;
}

export interface Recipient {
  address: string;
  /** queued, deferred, held, captured, delivered, relayed, failed, expired, cancelled, discarded, redirected, expanded. */
  state: string;
  status: string | null;
  reply: string | null;
  attempts: Record<string, unknown>[];
  [field: string]: unknown;
}

export interface Attachment {
  name: string;
  contentType: string;
  content(): Promise<Buffer>;
}

export class Message {
  readonly id: string;
  /** Of the envelope. */
  readonly sender: string;
  readonly subject: string;
  readonly state: string;
  readonly recipients: Recipient[];
  /** The journey when the message was read: seven steps. */
  readonly steps: { step: number; name: string; at: string; detail: Record<string, unknown> }[];
  /** text and html are decoded, "" where there is none. */
  readonly text: string;
  readonly html: string;
  /** The URLs in HTML and text, each once. */
  readonly links: string[];
  readonly attachments: Attachment[];
  /**
   * A login code: a number after a word such as "code" or "PIN", else six digits, else four to
   * eight; or the first match of a pattern, or of its group.
   */
  code(pattern?: RegExp): string;
  /** The MIME. */
  source(): Promise<string>;
  /** What its sender has got about it: bounces, and notices of a delay. */
  reports(): Promise<Message[]>;
}

export interface Reply {
  reply?: string;
  verb?: 'RCPT' | 'DATA' | 'DOT';
  action?: 'drop' | 'stall';
  times?: number;
  delay?: string;
  chance?: number;
}

export interface Place {
  host: string;
  port: number;
}

/** What only a relay has that start() has started. */
export interface Started {
  /** With STARTTLS. */
  readonly submission: Place;
  /** With TLS from the first octet. */
  readonly submissions: Place;
  /** The file of the certificate authority. */
  readonly ca: string;
  readonly pid: number;
  /** A token with the role operate. */
  readonly token: string;
}

export class Relay {
  static start(options?: StartOptions): Promise<Relay & Started>;
  /** Uses a relay that runs, such as that of a container. Throws if it does not answer. */
  static connect(options?: ConnectOptions): Promise<Relay>;
  /** Without TLS; any login or none. */
  readonly smtp: Place;
  readonly submission?: Place;
  readonly submissions?: Place;
  /** The URL of the pages and APIs, without a path. */
  readonly url: string;
  /** The URL of the Graph API. */
  readonly graph: string;
  readonly token?: string;
  readonly ca?: string;
  readonly pid?: number;
  /** Environment variables for a program under test, and for connect() in another process. */
  readonly env: Record<string, string>;
  /** The oldest message that matches and was not returned before, when it was tried for all recipients. */
  wait(options?: WaitOptions): Promise<Message>;
  waitForCount(count: number, options?: WaitOptions): Promise<Message[]>;
  /** The newest 1,000 that match, when what is in progress has ended. */
  messages(conditions?: Conditions): Promise<Message[]>;
  /** The message as it is now. */
  message(id: string): Promise<Message>;
  /** Settles, and throws if a message matches that was not returned before. */
  assertNoMoreMail(conditions?: Conditions): Promise<void>;
  /** Returns when nothing is queued and due, or in progress. */
  settle(): Promise<void>;
  /** Deletes all mail, and what was said of the internet; with conditions, only the mail that matches. */
  clear(conditions?: Conditions): Promise<void>;
  /** Ends the relay that start() has started; after connect(), only forgets which messages were returned. */
  stop(): Promise<void>;
  /** A request to Relay's own API as an operator. */
  request(path: string, options?: { method?: string; body?: unknown; as?: 'json' | 'text' | 'arrayBuffer' }): Promise<any>;
  readonly clock: {
    /** Returns when all that became due is done. */
    advance(passed: { days?: number; hours?: number; minutes?: number; seconds?: number }): Promise<void>;
  };
  readonly internet: {
    /** Replaces all by a scenario. Each call, also of reply(), begins to count `times` again. */
    use(scenario: Record<string, unknown>): Promise<void>;
    /** Replies are used in their order. The local part of the address may have `*`. */
    reply(address: string, reply: string | Reply): Promise<void>;
  };
}

export class WaitTimeout extends Error {}
