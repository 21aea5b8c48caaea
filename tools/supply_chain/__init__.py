"""What the images are made of: pinned, hashed, licensed, audited. See `docs/supply-chain.md`."""
