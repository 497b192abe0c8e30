"""`featx doctor`: what is installed, what the machine can do, and which extras lack packages."""

from __future__ import annotations

from typing import Annotated

import typer

from featx.cli.interrupts import loading
from featx.cli.printing import print_all, print_data


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, device, compiler, decoders, memory, and what is missing for each extra."""
    from featx.report import installation, installation_json, installation_table

    with loading("loading torch"):
        facts = installation()
    if json:
        print_data(installation_json(facts))
    else:
        print_all(installation_table(facts))
