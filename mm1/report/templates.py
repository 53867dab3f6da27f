"""The HTML templates of pages, with the same settings for all."""

from jinja2 import Environment, PackageLoader, Template, select_autoescape


def load_template(name: str, *, package: str = "mm1.report", **filters) -> Template:
    """The template `name` of a package; `filters` are functions it may call on values.

    It escapes all values that are not `Markup`.
    """
    environment = Environment(
        loader=PackageLoader(package, "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(name)
