"""Valid packs that the reference writer would never write, from a seed, with the results they must give."""
