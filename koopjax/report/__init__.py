"""results.json and the self-contained report.html beside it.

Fields of the results (all but the first five may be absent; unknown ones are kept):

=====================  =============================================================================
`dataset`, `seed`      name; the first of `seeds`
`original`             `accuracy` (mean over seeds), `accuracy_std`, `accuracies`, `stored_bytes`
                       (of the file that `export.save` writes), `parameters`
`replaced`             list of `dictionary`, `rank` (null: not limited), `truncation` ("none",
                       "output", "svd"), `target` ("state", "logits"), `null`, `accuracy`,
                       `agreement`, `kl`, `r2` (each with `..._std`), `numbers`, `stored_bytes`
`compressed`           list of `method`, `budget`, `ratio`, `stored_bytes`, `accuracy`, `finetuned`;
                       of a contest also `track`, `accuracy_std`, `seed`, `seeds`
`pareto`               a contest: `summary` (rows of `compress.Pareto.summary`), `originals` (by
                       seed), `points`, `dataset`, `sentence`
`sentence`             the finding, in one sentence, at `tolerance`
`singular_values`      by dictionary
`confusion`            `classes`, `original`, `replaced`, `replaced_name`
`disagreements`        `dictionary`, `count`, `of`, `examples` (`pixels`, `label`, `original`,
                       `replaced`)
`plane`                `rows` (as those of `replaced`, with `degree`, `rank`, `latent`), `nulls`,
                       `least`, `original`, `tolerance`, `sentence`: tensor trains
`bonds`                `degree`, `rank`, `values` (singular values, one list a bond)
`interactions`         `orders`, `beyond`, `mean_order` (each with `..._std`), `coordinates`
                       (`name`, `first`, `total`), `sentence`
`model`, `span`        name and configuration; `start` and `stop`
`settings`, `timing`,  how it was made
`versions`, `command`
=====================  =============================================================================
"""

from koopjax.report._report import load, render, save, to_json, versions, write, write_atomically

__all__ = ["load", "render", "save", "to_json", "versions", "write", "write_atomically"]
