"""What the tests share: scripted servers, certificates, clients."""
