"""The HTML templates of this package, with the same settings for all."""

from jinja2 import Environment, PackageLoader, Template, select_autoescape


def load_template(name: str, **filters) -> Template:
    """The template `name` beside this file; `filters` are functions it may call on values.

    It escapes all values that are not `Markup`.
    """
    environment = Environment(
        loader=PackageLoader("mm1.report", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(name)
