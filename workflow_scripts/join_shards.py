"""Join the parts of a generation by several jobs; the result equals that of one job."""

from pathlib import Path

import pyarrow.parquet as pq

from cohortloom.base.files import read_json, write_json
from cohortloom.base.step import main
from cohortloom.data.visits import RECONSTRUCT_SCHEMA, SCHEMA, visits_writer


def join_shards(
    *, synthetic_shards: list[Path], counts_shards: list[Path], synthetic: Path, counts: Path
) -> None:
    """Write the visits of all shards in their order, batch by batch, and the sums of their counts.

    Raises UserError if a batch does not fit the schema.
    """
    first_schema = pq.read_schema(synthetic_shards[0])
    schema = RECONSTRUCT_SCHEMA if "source_patient_id" in first_schema.names else SCHEMA
    metadata = {key.decode(): value.decode() for key, value in first_schema.metadata.items()}
    metadata.pop("ARROW:schema", None)  # the writer adds its own
    with visits_writer(synthetic, metadata, schema) as writer:
        for path in synthetic_shards:
            with pq.ParquetFile(path) as shard:
                for batch in range(shard.num_row_groups):
                    writer.write(shard.read_row_group(batch))
    totals: dict[str, int] = {}
    for path in counts_shards:
        for key, value in read_json(path).items():
            totals[key] = totals.get(key, 0) + value
    write_json(counts, totals)


if __name__ == "__main__":
    main(join_shards, globals().get("snakemake"))
