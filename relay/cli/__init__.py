"""The `relay` command."""


def main() -> None:
    """Run the command line."""
