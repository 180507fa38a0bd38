"""Constrained decoding: no forbidden code, the others in proportion, and the removed mass is reported."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.data.examples import N_PROMPTS
from cohortloom.data.forbidden import age_row, forbidden_table
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import RECONSTRUCT_SCHEMA, read_visits
from cohortloom.data.vocabulary import END, NOW, PAD, START
from cohortloom.generation.constrained import Constraint, ForbiddenCodes
from cohortloom.generation.synthesize import generate_visits, synthesize
from cohortloom.runtime.devices import fast_products
from evaluate_medical_validity import evaluate_medical_validity
from generate import generate
from join_shards import join_shards
from test_heads import RULES
from test_model import world  # noqa: F401

AGES, SEXES = np.tile([0.0, 0.5, 15.0, 40.0, 70.0, 90.0], 20), np.repeat([0, 1], 60)


def constraint(world, hard=False):  # noqa: F811
    vocabulary = world[0]
    return Constraint(vocabulary, forbidden_table(vocabulary, load_rules(RULES), hard))


def broken(world, records, hard) -> int:  # noqa: F811
    """Codes of generated records that break an edit."""
    vocabulary = world[0]
    rules, total = load_rules(RULES), 0
    for record in records:
        row = np.repeat(np.arange(len(record.age)), np.diff(record.offsets))
        found = rules.violations(vocabulary.decode(record.ids), record.age[row], record.sex[row])
        total += int((found.hard if hard else found.any).sum())
    return total


@pytest.mark.parametrize("tier", ["hard", "full"])
def test_no_violation_is_left_where_the_untrained_model_makes_many(world, tier):  # noqa: F811
    vocabulary, _, model = world
    drawn = (model, vocabulary, AGES, SEXES, ("synthesize", 0), 64)
    hard = tier == "hard"
    free = list(synthesize(*drawn, max_visits=3))
    bound = list(synthesize(*drawn, max_visits=3, constraint=constraint(world, hard)))
    assert broken(world, free, hard) > 20
    assert broken(world, bound, hard) == 0
    assert sum(record.counts["removed_mass"] for record in bound) > 1
    assert all("removed_mass" not in record.counts for record in free)
    if hard:  # that tier alone
        assert broken(world, bound, False) > 0


def test_the_masked_distribution_is_the_renormalized_one():
    shares = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.1, 0.4], [0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.1, 0.4]]
    )
    forbidden = torch.zeros(2, 8, dtype=torch.bool)
    forbidden[0, [5, 7]] = True
    processor = ForbiddenCodes(forbidden, first_boundary=5)
    written = torch.tensor([[START, 6], [START, 6]])
    made = processor(written, shares.log()).softmax(-1)
    assert torch.allclose(made[0], torch.tensor([0, 0, 0, 0, 2 / 3, 0, 1 / 3, 0]))
    assert torch.allclose(made[1], shares[1])
    assert processor.counts() == {"removed_mass": pytest.approx(0.7), "constrained_positions": 2}
    # a visit that has ended takes no part
    processor(torch.tensor([[START, END], [START, PAD]]), shares.log())
    assert processor.counts() == {"removed_mass": pytest.approx(0.7), "constrained_positions": 2}


def test_the_count_equals_the_mass_of_the_model_itself(world):  # noqa: F811
    """At the first token, where the terminators are not offered."""
    vocabulary, _, model = world
    rows, bound = (np.full(4, 3), np.ones(4, np.int64)), constraint(world)
    age, sex = np.array([0.0, 30.0, 60.0, 90.0]), np.array([0, 1, 0, 1])
    options = {"begin_suppress_tokens": vocabulary.terminators, "max_new_tokens": 1}
    made = generate_visits(model, vocabulary, rows, age, sex, 0, bound, **options)
    with torch.no_grad(), fast_products(model.device):
        logits = model(
            input_ids=torch.tensor([[START, START, NOW]] * 4),
            decoder_input_ids=torch.full((4, N_PROMPTS + 1), START),
            x_num=torch.from_numpy(age[:, None]).float(),
            x_cat=torch.from_numpy(sex[:, None]),
            logits_to_keep=1,
        ).logits[:, 0]
    logits[:, [START, *vocabulary.terminators]] = -torch.inf  # START is in the prefix already: a repeat
    mass = (logits.softmax(-1) * bound.table[sex, age_row(age)]).sum()
    assert made.counts["removed_mass"] == pytest.approx(float(mass), rel=1e-4)
    assert made.counts["constrained_positions"] == 4


def test_a_patient_without_any_allowed_code_is_refused(world):  # noqa: F811
    table = forbidden_table(world[0], load_rules(RULES))
    table[1, 7, world[0].first_code :] = True
    with pytest.raises(UserError, match="age 7, sex M"):
        Constraint(world[0], table).processor(np.array([30.0, 7.0]), np.array([0, 1]))


@pytest.fixture(scope="module")
def folder(world, dataset, tmp_path_factory):  # noqa: F811
    """An untrained model of the grammar cohort in a folder."""
    from cohortloom.data.examples import Examples
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.model.initial import make_model

    path = tmp_path_factory.mktemp("model")
    vocabulary = Vocabulary.load(dataset["vocabulary"])
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    make_model(vocabulary, Examples.load(dataset["train"]), "tiny", 0, 0.0, **losses).save_pretrained(path)
    (path / "vocabulary.json").write_bytes(dataset["vocabulary"].read_bytes())
    return path


def test_both_modes_and_shards_account_for_the_removed_mass(folder, dataset, tmp_path):
    given = {"model_dir": folder, "train": dataset["train"], "test": dataset["test"], "device": "cpu"}
    bound = {**given, "constrained": "full", "rules": RULES, "batch_size": 64}
    rates = {}
    for name, keywords in {"free": given, "bound": bound}.items():
        files = {"synthetic": tmp_path / f"{name}.parquet", "counts": tmp_path / f"{name}.json"}
        generate(mode="synthesize", **files, **keywords)
        evaluate_medical_validity(
            synthetic=files["synthetic"],
            rules=RULES,
            counts=[files["counts"]],
            records=tmp_path / "r.json",
            run="x",
        )
        rates[name] = {row["metric"]: row for row in read_json(tmp_path / "r.json") if not row["subset"]}
    assert rates["free"]["any_violation_rate"]["value"] > 0.05 and "removed_mass" not in rates["free"]
    assert (
        rates["bound"]["any_violation_rate"]["value"] == rates["bound"]["hard_per_100k_visits"]["value"] == 0
    )
    assert rates["bound"]["removed_mass"]["value"] > 0.05
    parts = [(tmp_path / f"{i}.parquet", tmp_path / f"{i}.json") for i in (1, 2)]
    for i, (synthetic, counts) in enumerate(parts):
        generate(mode="synthesize", synthetic=synthetic, counts=counts, shard=i + 1, shards=2, **bound)
    whole = tmp_path / "whole.parquet"
    join_shards(
        synthetic_shards=[a for a, _ in parts],
        counts_shards=[b for _, b in parts],
        synthetic=whole,
        counts=tmp_path / "whole.json",
    )
    assert read_json(tmp_path / "whole.json") == pytest.approx(read_json(tmp_path / "bound.json"))
    assert read_visits(whole).equals(read_visits(tmp_path / "bound.parquet"))
    generate(mode="reconstruct", synthetic=tmp_path / "c.parquet", counts=tmp_path / "c.json", **bound)
    assert read_json(tmp_path / "c.json")["removed_mass"] > 0
    filled = read_visits(tmp_path / "c.parquet", RECONSTRUCT_SCHEMA.names).to_pylist()
    made = [
        (r["age"], r["sex"], c) for r in filled for c in r["diagnoses"] if c not in r["revealed_diagnoses"]
    ]
    age, sex, codes = zip(*made, strict=True)
    found = load_rules(RULES).violations(
        pa.array(codes), np.array(age), np.array([s == "M" for s in sex]) * 1
    )
    assert not found.any.any()


def test_a_constraint_without_a_table_is_refused(folder, dataset, tmp_path):
    with pytest.raises(UserError, match="give rules"):
        generate(
            model_dir=folder,
            train=dataset["train"],
            test=dataset["test"],
            synthetic=tmp_path / "x.parquet",
            counts=tmp_path / "x.json",
            constrained="hard",
        )
