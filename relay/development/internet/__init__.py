"""The simulated internet of the development relay: name, web and mail servers on loopback.

They are real servers, so that Relay delivers with the code that also runs in production. What a
host replies, and what the name server answers, is decided by the scenario. `relay serve` never
imports this room.

- `simulator`: which hosts there are and listen, their loopback addresses; DNS answers for a domain
- `dns_server`: the name server: UDP, TCP, truncation, CNAME
- `policy_server`: the web server with the MTA-STS policies of domains, and their TXT records
- `smtp_host`: a mail host: its SMTP session, its limits, what it remembers
- `behaviour`: at which stages of a session a host decides, and what it can do
- `scenario`: the values of a scenario: domains, hosts, replies, rate limits, faults of Graph
- `scenario_file`: reads scenarios and says what is wrong; shipped ones; adds and removes a reply
- `scenario_state`: which reply of a scenario is used now, how often it was used; greylisting
- `test_recipients`: what an address such as bob+550@example.org asks its host to do
- `host_certificates`: the certificates of the hosts, the bad one too
- `overview`: what a person sees: domains, replies, what hosts have seen

Elsewhere: what becomes of accepted mail: `relay/development/simulated_recipients.py`; faults of the
Graph API: `relay/development/graph_faults.py`.
"""
