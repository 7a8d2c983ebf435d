"""The tfds builders of the data sets that `rrm data prepare` knows, and of what is made of them."""

from pathlib import Path

from rrm_jax.data.record_builder import RecordsBuilder
from rrm_jax.data.sources.base import Source


def builder_of(source: Source) -> type[RecordsBuilder]:
    """A builder with the source's name, licence and citation, which tfds keeps beside the records."""
    name = "".join(word.capitalize() for word in source.name.split("-"))
    return type(
        name,
        (RecordsBuilder,),
        {
            "__doc__": RecordsBuilder.__doc__,
            "__module__": __name__,
            "DESCRIPTION": f"{source.kind.capitalize()} of {source.hub or 'a file'} {source.revision}".strip(),
            "HOMEPAGE": f"https://huggingface.co/datasets/{source.hub}" if source.hub else "",
            "CITATION": source.citation,
            "LICENCE": source.licence,
        },
        skip_registration=True,  # else tfds refuses to have the name twice in a process
    )


def builder_like(directory: Path) -> type[RecordsBuilder]:
    """A builder for some of the records of a prepared data set, with its licence and citation."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(directory)).info
    licence = info.redistribution_info.license if info.redistribution_info else ""
    return type(
        "".join(word.capitalize() for word in info.name.split("_")),
        (RecordsBuilder,),
        {
            "__doc__": RecordsBuilder.__doc__,
            "__module__": __name__,
            "DESCRIPTION": info.description,
            "HOMEPAGE": info.homepage,
            "CITATION": info.citation,
            "LICENCE": licence,
        },
        skip_registration=True,
    )
