"""The development relay: what `relay dev` and the test kit add to the rooms of a service.

In: words of `relay dev`, scenarios, requests of Mailpit's clients. Out: a relay on loopback whose
mail leaves the machine only where the user allows it.

- `verbs`: the verbs dev, clock and reset: which options exclude each other, and what they print
- `mail_access`: IMAP and POP3, by Dovecot's programs
- `internet`: the simulated internet: test recipients, scenarios, name server, mail hosts
- `relay`: composes one: the rooms with the simulated internet; scenarios; reset
- `options`: its options, where it listens, its relay.toml, where all mail is captured; release host
- `option_fields`: how a field is declared as an option, and as a variable, of `relay dev`
- `cloud`: the second relay of --cloud, which plays Microsoft 365; which mail goes there
- `foreground`: `relay dev` for a person: demonstration, then which steps are shown; changed rules;
  --once
- `demonstration`: the two messages of the demonstration, and the example of the pages
- `accounts`: which account a token, login or client names: any, without set-up
- `user_grants`: how users sign in: authorization code, device code, password, refresh token
- `sign_in_pages`: the pages of such a sign-in, and to which redirect URIs a code may go
- `authority`: its certificate authority, and the certificates of HTTPS
- `issuer`: how certificates are issued, also those of the simulated hosts
- `clock_advances`: advances of the clock, one at a time
- `automatic_release`: which captured mail is released automatically, when, and once
- `search_index`: what a search of the pages finds: which texts are indexed, when, and how compared;
  when a file that failed is used again
- `mailpit`: Mailpit's API on the port of the pages: routes, lists, marks, removal, who may use it;
  which terms its search has
- `mailpit_events`: Mailpit's events on a WebSocket: which there are, when, and for whom
- `mailpit_message`: Mailpit's JSON of a message, its header, parts and HTML; `send`, and which
  fields of it are refused
- `mcp`: the tools that agents have (Model Context Protocol): who may use which, and which
  facts of a mail they get
- `removal`: removes one message, or all (`relay reset`), while the relay runs; which old mail goes,
  by number, age and size
- `graph_faults`: the errors of Graph, from 401 to 504, that a scenario asks for
- `simulated_recipients`: mail that simulated hosts accept: copies, and reports that come later

Elsewhere: the token endpoint that asks for these grants: `relay/front_door/sign_in`; what simulated
hosts reply to bob+550@…: `relay/development/internet`; to whom captured mail may be released:
`relay/front_door/api/release.py`.
"""
