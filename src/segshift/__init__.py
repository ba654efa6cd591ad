"""segshift: adapt semantic segmentation to a domain you have no labels for, or not even an image of."""
