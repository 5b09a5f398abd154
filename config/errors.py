"""What can be wrong with settings."""


class ConfigError(Exception):
    """A setting can not be used. The message names the key, the value and what is accepted."""
