"""What the demo embeds: pairs that say the same in other words, and some that do not."""

SENTENCES = (
    "The cat sat on the warm windowsill and watched the rain.",
    "A kitten was looking at the rainy street from the sill.",
    "Quarterly revenue grew by eleven percent on strong demand for memory chips.",
    "Sales of memory rose more than a tenth over the last three months.",
    "How do I reset the password of my account?",
    "I forgot my login details; how can I get back in?",
    "The bridge was closed after engineers found cracks in two of its cables.",
    "Inspectors shut the crossing because its suspension cables were damaged.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Plants make their food from sunlight and air.",
    "She practised the violin for two hours before breakfast.",
    "He repaired the old bicycle with parts from three others.",
    "Matrix multiplication dominates the cost of running a language model.",
    "Most of the time of inference is spent multiplying matrices.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Floating-point addition is not associative, so the order of a sum changes its bits.",
)
