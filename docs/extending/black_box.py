"""A black box: a network that only predicts, here any tflite file of a segmentation network of Cityscapes.

    export NETWORK=deeplab_mobilenet_edgetpu_slim_cityscapes_quant.tflite
    segshift predict OUT --run black_box:build --data cityscapes:/data/cityscapes:val --batch-size 1
    segshift estimate OUT --run black_box:build --source cityscapes:/data/cityscapes:val --to night

The commands find black_box.py in the current folder, or as --run /path/to/folder/black_box:build.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter


def build(classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function of a picture [H, W, 3] uint8 RGB to train ids [h, w], at the size that the network works at.

    `classes`: of the data set; the file has Cityscapes' 19. Scores [classes, h, w] would be as welcome.
    """
    if classes != 19:
        raise ValueError(f"the network has Cityscapes' 19 classes, and the data set {classes}")
    interpreter = Interpreter(os.environ["NETWORK"], num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    [image], [ids] = interpreter.get_input_details(), interpreter.get_output_details()
    _, height, width, _ = image["shape"]

    def predict(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        interpreter.set_tensor(image["index"], small[None])
        interpreter.invoke()
        return interpreter.get_tensor(ids["index"])[0]

    return predict
