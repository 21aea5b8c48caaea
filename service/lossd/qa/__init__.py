"""Annotation QA: where masks and predictions disagree, how suspicious that is, and what it may be.

    observation  prediction, mask -> per-pixel loss, class, margin as bytes; scores; histogram
    levels       loss levels, class-tails, and means of the worst pixels from histograms
    contexts     what the images of a data set have in common, kept by name
    suspicion    sub-scores of an image among those of all
    runs         connected pixels by way of runs, for regions and given objects
    points       where to look first
    regions      disputed pixels that belong together
    outlines     how straight outlines are
    findings     all that is found in one image; compiled_findings: the same in C++
    kinds        what probably went wrong in a region, from the outlines alone
    wording      what is said of regions, as text
    judging      what is said of images

Observing is work of the engine, the rest is work on bytes for worker threads. Between the two there
are only integers and a few sums in float64, so an image judged from its bytes and an image judged
live are judged alike to the bit, in any order and in any company.
"""
