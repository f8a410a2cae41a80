from core.seeding import derive


def test_every_part_of_every_run_has_its_own_seed():
    seeds = [derive(s, role, i) for s in range(20) for role in ("actor", "eval") for i in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_seed_does_not_move_between_processes_or_versions():
    assert derive(0, "actor", 1) == derive(0, "actor", 1) == SEED_OF_ACTOR_1


SEED_OF_ACTOR_1 = 202839615
