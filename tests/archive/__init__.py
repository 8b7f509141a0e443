"""Stand-ins for the survey archives, on loopback, that speak their exact formats."""
