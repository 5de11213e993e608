"""The proof that nothing is lost and nothing wrong is accepted: faults, power loss, races, damage, wrong bases."""
