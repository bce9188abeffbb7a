"""Ways to carry a pre-trained model to new classes: KIND's, and those it is compared with."""
