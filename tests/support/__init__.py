"""What the tests share: servers that do as they are told, certificates, clients."""
