"""Formats: reading, writing and changing messages as octets (RFC 5322, MIME, DSN, drafts' files).

The modules are pure functions of relay.base.message's values: no sockets, no event loop, no clock.

From a draft to the message that is sent (step 3):

- `draft`: the file of a draft: its private block, properties, body and attachments
- `convert`: the message that is sent: envelope, authors, SMTPUTF8, 8BITMIME
- `mime_of_properties`: the MIME of Graph's properties: alternative, related, mixed, attachments
- `repair_mime`: changes of a draft that is MIME already: Bcc, missing fields, Sender, long lines,
  NULs, line ends
- `write_header`: the header of Graph's properties: addresses, parameters, importance, categories
- `html_text`: the text alternative of an HTML body; bodyPreview; text as HTML

Changes of a draft, replies, forwards:

- `edit_draft`: a PATCH of a draft that is MIME: only the fields and the body that it names
- `edit_attachments`: adds an attachment to MIME, or removes one; when a multipart is put around it;
  attachments of a stored message in a new draft
- `quoting`: the quote of a reply or forward: From, Sent, To, Subject, and its HTML; what stands
  above it (uniqueBody)
- `safe_markup`: which elements, attributes and styles of HTML are harmless
- `html_tokens`: tags and texts of HTML, as a browser splits them; cid: references

Reading messages:

- `structure`: the parts of a message and where they are; only reads, damaged MIME too
- `read_mime`: which part is the body and which are attachments; their names and sizes
- `read_header`: header fields as Graph's properties; the only author
- `address_list`: the names and addresses of From, To and similar fields; which are ambiguous
- `complete_addresses`: a domain for addresses of a program's mail that have none
- `content_fields`: Content-Type and Content-Disposition; the file name of an attachment
- `links`: links and one-time codes in bodies; relative, unencrypted, unfilled links; a text that
  names another host
- `body_checks`: which features of HTML and CSS a body uses, in which lines, and which mail programs
  support them, by caniemail.json; faults of links
- `file_types`: the type of a file by its first octets

Header fields and encodings:

- `headers`: Received, Date, X-Relay-Id, Subject prefix; a message's priority; Auto-Submitted, lists
- `charsets`: octets as text for all readers: labels, damage, byte order marks, `<meta charset>`
- `flowed`: the lines of a text with format=flowed and DelSp=yes, joined
- `encoded_words`: RFC 2047 words: read and write
- `transfer_encoding`: base64, quoted-printable, uuencode; which encoding a text gets

For a host that cannot take a message as it is (step 6):

- `encode_for_host`: 8-bit content, and lines of more than 998 octets: which parts are encoded
  again; fields in ASCII (encoded words, RFC 2231), and long ones on several lines

For Microsoft Graph (step 6):

- `graph_copy`: To, Cc and Bcc are exactly the recipients of a request; what leaves these fields
- `graph_draft`: a message as a draft in JSON and its files; which messages are not converted
- `report_as_mail`: a bounce as mail of a mailbox: its author, attachments, X-Relay-Report

Reports and disclaimers:

- `dsn`: the parts of a bounce (DSN): status block, the original or its header; a journal report and
  a notice, which rules send
- `mdn`: which messages ask for a read receipt (MDN), who may be answered, and the MDN itself
- `read_report`: what a DSN or MDN of Relay or of another host says; message class
- `disclaimer`: where a message gets a disclaimer, in a text or in HTML; whether it is there
  already; which cannot have one (signed, encrypted)

Elsewhere: splitting and editing a header: `relay/base/message/header.py`; Received and Bcc of
arriving mail: `relay/transport/ingress/header_cleanup.py`; who gets a bounce:
`relay/delivery/reports/bounces.py`; Subject and References of a reply:
`relay/base/message/conversation.py`.
"""
