"""What goes wrong while a broker is looked for."""


class BrokerUnavailable(Exception):
    """This way of getting a broker is not open on this machine; the message says why."""


class BrokerFailed(Exception):
    """A broker that should run does not; the message holds the end of its log."""
