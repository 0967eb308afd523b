"""How good are the samples? Features of images, and distances between sets of them."""
