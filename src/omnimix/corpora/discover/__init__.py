"""Make domains: clusters of documents, taxonomies that a classifier learns, and data sets as vectors over them."""

from .annotator import TaxonomyAnnotator
from .embed import Encoder, Tfidf, TfidfSVD, embed
from .finetune import TransformerClassifier
from .linear import TfidfClassifier
from .product import Product, product
from .regroup import Groups, Overlap, overlap, regroup
from .taxonomy import Agreement, Taxonomy, TaxonomyClassifier, agreement
from .vectors import DatasetVectors, mean_vector, vectorize

__all__ = [
    "Agreement",
    "DatasetVectors",
    "Encoder",
    "Groups",
    "Overlap",
    "Product",
    "Taxonomy",
    "TaxonomyAnnotator",
    "TaxonomyClassifier",
    "Tfidf",
    "TfidfClassifier",
    "TfidfSVD",
    "TransformerClassifier",
    "agreement",
    "embed",
    "mean_vector",
    "overlap",
    "product",
    "regroup",
    "vectorize",
]
