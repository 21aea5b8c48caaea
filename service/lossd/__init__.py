"""lossd: a loss daemon for segmentation masks and logits."""

__version__ = "0.1.0"
