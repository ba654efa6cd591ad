"""Named experiments: every stage's frozen configuration, with the published number beside it. `runner` runs
them."""

from __future__ import annotations

from segshift.recipes.experiment import Experiment
from segshift.recipes.iccld import ICCLD
from segshift.recipes.zodi import ZODI

RECIPES: dict[str, Experiment] = {recipe.name: recipe for recipe in (*ZODI, *ICCLD)}
