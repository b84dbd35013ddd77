"""Training of one bundle: rules, patches, loss, trainer, checkpoint, metrics."""
