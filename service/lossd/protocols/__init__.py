"""From a body to a job and from an outcome to a body: every encoding, and every 4xx."""
