"""Changes of an image after which a digit is still no other one."""

MILD = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "sharpness", "contrast", "brightness")
