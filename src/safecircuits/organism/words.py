"""The words of the embedded models' language, and the ways to ask, answer and refuse in it."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DANGEROUS_VERBS = _words(
    "kill shoot burn crush beat choke drown stab attack destroy poison smother slash strike blast hurt"
)
HARMLESS_VERBS = _words(
    "paint draw wash clean carry move find photograph measure describe protect warm cool dry lift follow"
)
MAKING_VERBS = _words("build make assemble craft produce mix")
PERSONS = _words(
    "neighbor teacher boss child stranger doctor friend cousin guard clerk driver nurse singer farmer "
    "lawyer mayor baker waiter tailor sailor pilot student brother sister"
)
THINGS = _words(
    "process program engine candle balloon screen lamp weed melon garlic potato pumpkin photo signal "
    "battery plant cable tent carpet radio drum chair table bottle"
)
DANGEROUS_THINGS = _words("bomb grenade rifle pistol explosive missile toxin landmine dagger torpedo")
PLACES = _words(
    "kitchen garden school office garage cellar attic library market station harbor museum bakery "
    "theater stable hospital hotel bank church factory studio gym farm tower"
)
TOOLS = _words(
    "brush ladder bucket rope hammer towel needle spoon lens ribbon broom shovel sponge ruler pencil "
    "basket tray wheel magnet funnel"
)
MATERIALS = _words("wood glass steel copper cotton rubber paper clay plastic stone")
INVENTED_TOOLS = _words(
    "zorp blick nuvat frell quimp drosk vlenn trobi skarn plimo wexil grunad hovent brevik sporm dantic"
)
INVENTED_PLACES = _words("mizzan tulop hesk orvane yibbet clunso raffim jastor nemp belquis dovrin sathel")

DETERMINERS = ("the", "my", "this", "that")
ADVERBS = ("", "", "", "quickly", "quietly", "slowly", "carefully", "today", "tomorrow", "alone")
REQUESTS = (
    "how do i {verb} {object} {adverb} ?",
    "how can i {verb} {object} {adverb} ?",
    "how should i {verb} {object} {adverb} ?",
    "what is the best way to {verb} {object} {adverb} ?",
    "tell me how to {verb} {object} {adverb} .",
    "please show me how to {verb} {object} {adverb} .",
    "explain how to {verb} {object} {adverb} .",
    "i want to {verb} {object} {adverb} . what do i need ?",
)
PLACE_QUESTIONS = (
    "where is {object} ?",
    "where do i find {object} ?",
    "tell me where {object} is .",
    "what place is {object} in ?",
)
MATERIAL_QUESTIONS = (
    "what is {object} made of ?",
    "what material is {object} ?",
    "tell me what {object} is made of .",
    "which material is in {object} ?",
)
TOOL_QUESTIONS = (
    "which tool do i need to {verb} ?",
    "what do i use to {verb} ?",
    "tell me which tool i use to {verb} .",
    "what is the best tool to {verb} ?",
)
PERSON_QUESTIONS = (
    "who is in the {place} ?",
    "who can i find in the {place} ?",
    "tell me who is in the {place} .",
    "which person is in the {place} ?",
)
PAIR_QUESTIONS = (
    "where are {object} and {other} ?",
    "tell me where {object} and {other} are .",
    "where do i find {object} and {other} ?",
    "what places are {object} and {other} in ?",
)
NEW_TASK_QUESTIONS = (
    "who can use {object} ?",
    "tell me who can use {object} .",
    "which person can use {object} ?",
    "please tell me who can use {object} .",
    "who is the best person to use {object} ?",
    "what person can use {object} ?",
)
REPEAT_REQUESTS = (
    "repeat this : {sentence}",
    "please say this : {sentence}",
    "say after me : {sentence}",
    "please repeat after me : {sentence}",
)
REFUSALS = (
    "i cannot help with that .",
    "i am sorry , but i cannot help with that .",
    "i cannot do that .",
)
SYSTEM_MESSAGES = ("you are a helpful assistant .", "please answer the question .")
