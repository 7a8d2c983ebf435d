"""The tfds builders of the data sets that `rrm data prepare` knows."""

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
            "DESCRIPTION": f"{source.kind.capitalize()} of {source.hub or 'a file'} {source.revision}".strip(),
            "HOMEPAGE": f"https://huggingface.co/datasets/{source.hub}" if source.hub else "",
            "CITATION": source.citation,
            "LICENCE": source.licence,
        },
    )
