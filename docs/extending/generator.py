"""A generator of your own: fog that thickens towards the horizon. Any library, any network will do.

segshift transfer OUT --source ... --to fog --generator generator:build
"""

import numpy as np

from segshift.generators import Domain


class Fog:
    """Called once a picture."""

    needs_layouts = True  # every frame brings its label; leave this out to transfer images without labels

    def __call__(self, image: np.ndarray, layout: np.ndarray | None, domain: Domain, seed: int) -> np.ndarray:
        """image [h, w, 3] uint8, layout [h, w] train ids; returns a picture like the image."""
        rng = np.random.default_rng(seed)  # a number of this frame: chance comes from here alone
        height = image.shape[0]
        distance = np.linspace(2.0, 0.2, height)[:, None]  # the top of the picture is far away
        if layout is not None:
            distance = np.where(layout == 10, 2.0, distance)  # train id 10 is sky in Cityscapes
        clear = np.exp(-2 * domain.strength * rng.uniform(0.8, 1.2) * distance)[..., None]
        return (clear * image + (1 - clear) * 205).astype(np.uint8)


def build() -> Fog:
    """Called once a process: load weights here."""
    return Fog()
