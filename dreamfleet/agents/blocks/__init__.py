"""What two agents share: networks, distributions, returns."""
