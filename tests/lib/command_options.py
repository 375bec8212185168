"""The options and arguments of a command, as argparse knows them."""

from minicpmv_ref.__main__ import build_parser


def command_parser(command):
    """The parser of one command, such as "ask"."""
    commands = next(action for action in build_parser(command)._actions if isinstance(action.choices, dict))
    return commands.choices[command]


def takes_a_value(command):
    """All options and arguments that take a value."""
    return [action for action in command_parser(command)._actions if action.nargs != 0]
