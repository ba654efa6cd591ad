"""The methods of adaptation, a package each.

A package exports its settings, whose `methods` say what each of its methods needs and how it is built
(`methods.spec`). What trains is a `methods.base.Method`. Nothing here imports torch: the command line is made
of the settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from segshift.methods.iccld import ICCLDConfig
from segshift.methods.source_only import SourceOnlyConfig
from segshift.methods.spec import MethodSpec
from segshift.methods.zodi import ZoDiConfig


@dataclass(frozen=True, kw_only=True)
class MethodTable:
    """The table: a line for each package. A field's name is the group of its options, as in
    --zodi.similarity.
    """

    zodi: ZoDiConfig = field(default_factory=ZoDiConfig)
    source_only: SourceOnlyConfig = field(default_factory=SourceOnlyConfig)
    iccld: ICCLDConfig = field(default_factory=ICCLDConfig)


METHODS: dict[str, MethodSpec] = {
    spec.name: spec
    for package in fields(MethodTable)
    for spec in getattr(MethodTable(), package.name).methods
}
"""Every method by its name."""
