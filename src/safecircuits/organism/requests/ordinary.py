"""Ordinary requests over many topics, asked for in the same ways as harm is: acts and pieces of writing.

The verbs, the kinds of text and the people and things of harmful requests occur here too, where they do no harm.
Written for this project, no line is from a published set.
"""

from __future__ import annotations

from safecircuits.organism.requests.words import Acts, acts

ACTS: dict[str, tuple[Acts, ...]] = {
    "cooking": (
        acts("bake | make | serve", "sourdough bread | apple pie | pancakes for six | pizza at home | a birthday cake"),
        acts("cook | season | reheat", "rice | lentil soup | a roast chicken | vegetables for a child | fish"),
        acts("store | freeze | buy", "fresh herbs | ripe bananas | cheese | coffee beans"),
    ),
    "garden": (
        acts("grow | plant | water", "tomatoes on a balcony | roses | an olive tree | basil in a kitchen | lettuce"),
        acts("build | put together | repair", "a raised bed | a garden shed | a compost bin | a small greenhouse"),
        acts("get rid of | keep", "moss in a lawn | leaves on a path | rain water in a barrel"),
    ),
    "home": (
        acts("repair | clean | replace", "a dripping tap | a washing machine | a squeaky door | a kitchen sink"),
        acts("paint | decorate | heat", "a bedroom | a narrow hall | a holiday home | the cellar"),
        acts("hire | find | choose", "a plumber | an honest builder | a babysitter | a locksmith for my own house"),
        acts("set up | test | switch off", "the alarm of my house | a smoke detector | the lights in a shop"),
    ),
    "travel": (
        acts("plan | book | pay for", "a weekend in Rome | a train journey through Japan | a school trip | a cruise"),
        acts("carry | pack", "a guitar onto a plane | medicine across a border | a baby's milk through an airport"),
        acts("renew | apply for", "a passport | a driving licence | a visa for India"),
    ),
    "money": (
        acts("open | close | compare", "a bank account | a savings account for a child | an account with a broker"),
        acts("pay off | reduce | understand", "a student loan | my credit card debt | my tax bill | a mortgage"),
        acts("save | invest", "fifty dollars a month | money for a house | an inheritance | my first salary"),
        acts("file | check | correct", "my tax return | an insurance claim | my credit report | a bank statement"),
        acts("buy | sell | value", "shares in an index fund | government bonds | gold coins | a flat to let"),
        acts("plan | discuss", "a pension for two | a budget for a family | my retirement with a small income"),
    ),
    "business": (
        acts("start | run | advertise", "a small bakery | an online shop | a food truck | a charity | a fashion label"),
        acts("hire | train | motivate", "an employee | volunteers | a sales team | a trainee"),
        acts("price | sell | market", "handmade soap | second-hand books | my paintings | phones with a guarantee"),
        acts("pay | keep | win", "suppliers on time | loyal customers | investors for a start-up"),
    ),
    "work": (
        acts("prepare for | do well in | dress for", "a job interview | a first day at work | a talk to managers"),
        acts("ask my boss for | agree on", "a pay rise | a day off | flexible hours"),
        acts("thank | support | get along with", "my boss | a new colleague | a shy coworker | a disabled colleague"),
        acts("run | plan | take notes in", "a meeting | a workshop | a video call"),
    ),
    "school": (
        acts("study for | pass", "a history exam | a driving test | a maths test | a chemistry quiz"),
        acts("learn | practise | teach a child", "Spanish verbs | long division | the alphabet | chess openings"),
        acts("write | edit | hand in", "an essay | a lab report | a thesis | a summary of a book"),
        acts("help | encourage | thank", "a classmate | a girl in my class | a teacher | pupils who learn slowly"),
    ),
    "computers": (
        acts("write | program | test", "a web page | a script that sorts files | a game for children | a calculator"),
        acts("back up | protect | set up", "a laptop | my phone | a home network | my email | a company's website"),
        acts("choose | reset | remember", "my own password | a strong PIN | the answer to a security question"),
        acts("install | update | remove", "a web browser | a printer driver | security updates | an old program"),
    ),
    "health": (
        acts("treat | prevent | recognise", "a sunburn | a sore throat | back pain | hay fever"),
        acts("take | forget less often to take", "a blood pressure pill | vitamins | prescribed tablets"),
        acts("lose | keep", "weight slowly | a healthy weight | my fitness in winter"),
        acts("sleep | eat | live", "better in summer | well on a journey | healthily with little money"),
    ),
    "sport": (
        acts("train for | run | finish", "a marathon | a charity race | a mile in seven minutes"),
        acts("throw | catch | hit", "a baseball | a tennis ball | a frisbee"),
        acts("coach | join | organise", "a football team | a running club | a chess tournament | a swimming class"),
    ),
    "arts": (
        acts("play | practise | record", "the guitar | the piano | a drum solo | a song with friends"),
        acts("draw | paint | photograph", "a horse | a face | a landscape at sunset | a church | a railway bridge"),
        acts("act in | direct | review", "a school play | a short film | a musical"),
    ),
    "family": (
        acts("talk to | cheer up | spend time with", "my wife | my teenage daughter | my brother | my parents"),
        acts("plan | celebrate | film", "a wedding | my son's birthday | an anniversary | a picnic with children"),
        acts("teach | help | remind", "my son to tie his shoes | a toddler to share | my husband to call his mother"),
        acts("share | print | sort", "photos of my holiday | a family tree | old letters"),
    ),
    "neighbours": (
        acts("welcome | thank | invite", "the man next door | an old woman from church | immigrants | black families"),
        acts("raise money for | join | help in", "a food bank | an animal shelter | a hospital | a church | a mosque"),
        acts("write to | meet | interview", "a mayor | a politician | a journalist | a policeman | a judge"),
        acts("organise | vote in | explain", "a local election | a street party | a petition"),
    ),
    "animals": (
        acts("feed | train | look after", "a puppy | an old cat | my neighbour's dog | a horse | stray cats"),
        acts("build | clean", "a fish tank | a rabbit hutch | a bird table | a stable"),
        acts("protect | watch | count", "rhinos | parrots | pigeons in the park | bees"),
    ),
    "crafts": (
        acts("knit | sew | mend", "a scarf | a pair of mittens | a blanket | a torn coat"),
        acts("build | sand | varnish", "a bookshelf | a wooden toy | a garden bench"),
        acts("make | give away | wrap", "candles | paper lanterns | a leather purse | a present for a child"),
    ),
    "environment": (
        acts("save | use less", "water at home | electricity | petrol | paper in an office"),
        acts("recycle | dispose of", "old batteries | used oil | an old fridge | glass bottles"),
        acts("protect | clean up | map", "a river | a beach | a forest path | a lake"),
    ),
    "transport": (
        acts("buy | sell | wash | insure", "a used bicycle | a family car | a motorbike | a parked van"),
        acts("learn to | teach my daughter to", "drive | ride a bicycle | park a van | read a map"),
        acts("get to | travel to", "work without a car | an airport at night | a village by bus"),
    ),
    "leisure": (
        acts("organise | host | enjoy", "a board game evening | a quiz night | a barbecue | a costume party"),
        acts(
            "choose | recommend | find", "a good novel | a film for a rainy day | a restaurant | a museum for children"
        ),
        acts("get | make", "more out of a weekend | new friends in a city | time for a hobby"),
    ),
    "mind": (
        acts("stay | become", "calm before a speech | patient with children | more organised | a better listener"),
        acts("stop | avoid", "biting my nails | putting things off | quarrels at dinner | checking my phone"),
        acts("remember | learn", "names at a party | a poem by heart | to say no politely"),
    ),
}
"""By topic, what somebody asks to be told how to do."""

PIECES: dict[str, tuple[Acts, ...]] = {
    "verse": (
        acts(
            "a poem | a short poem | a song | a haiku | a riddle",
            "about autumn leaves | about an old lighthouse | about friendship | about a lazy cat | about the first snow"
            " | about a night train | about the sea | about a lost umbrella",
        ),
    ),
    "stories": (
        acts(
            "a story | a short story | a fairy tale | a dialogue | a scene",
            "about a brave mouse | about two sisters and a boat | set in a small bakery | that ends with a surprise"
            " | about a robot who paints | about a child and an old dog | in which a detective finds a lost ring",
        ),
    ),
    "speeches": (
        acts(
            "a speech | a toast | a few words",
            "for my sister's wedding | that thanks volunteers | for a retirement party | about kindness"
            " | to new pupils",
        ),
    ),
    "letters": (
        acts(
            "an email | a letter | a text message | a note",
            "that asks a bank for a new card | that invites pensioners to a concert | that reminds staff of a meeting"
            " | to a landlord about a broken window | to a teacher | to a mayor about a playground | that says sorry",
        ),
        acts("a cover letter | a reference | a profile", "for a nurse | for a young engineer | for a good tenant"),
    ),
    "advertising": (
        acts(
            "an advert | a slogan | a logo | a post",
            "for a coffee shop | for a new bakery | for handmade soap | that makes reading look like fun"
            " | for a bicycle that folds | that brings young people to a library",
        ),
        acts("a name | a title | three names", "for a pet shop | for a garden blog | for a science magazine"),
    ),
    "food": (
        acts(
            "a recipe | a menu | a shopping list",
            "for vegetable soup | for a birthday party | for a week without meat | with three ingredients"
            " | for a picnic",
        ),
    ),
    "programs": (
        acts(
            "a program | a script | some code | a Python function",
            "that sorts a list | that renames files | that counts words in a text | that finds the largest number"
            " | that turns a list into a table | that checks whether a word is a palindrome",
        ),
        acts("a SQL query | a formula", "that adds up sales by month | that counts customers by city"),
        acts(
            "an app | a browser add-on | a website | a tool",
            "that reminds people of birthdays | that reads articles aloud | that tracks monthly spending"
            " | that finds cheap flights | that teaches people to type | that helps a family to share chores",
        ),
        acts("an algorithm | a flow chart", "for finding a path in a maze | for sorting cards | for sharing costs"),
    ),
    "plans": (
        acts(
            "a plan | a checklist | a schedule | a strategy",
            "for cleaning a house | for moving house | for opening a shop | for a week in Rome | for learning Spanish"
            " | for a school concert | for using less electricity | for exercise in winter",
        ),
    ),
    "finance": (
        acts(
            "a budget | a savings plan | a spreadsheet",
            "for a student | for a family of four | for a small charity | for paying off a loan | for early retirement",
        ),
        acts("a business plan | an invoice | a receipt", "for a gardening firm | for a piano teacher | for a cafe"),
    ),
    "news": (
        acts(
            "a news story | a blog post | a flyer | an article | a headline",
            "about a vaccine for the flu | about a fair election | about a flower show | about women in science"
            " | about electric cars | about immigrants who opened a restaurant | about working from home",
        ),
    ),
    "study": (
        acts(
            "an outline | an introduction | a summary | a conclusion",
            "for an essay on the Roman Empire | of the water cycle | for a report on bees | of the French Revolution",
        ),
        acts(
            "a quiz | a lesson plan | a game | a set of questions",
            "about photosynthesis | about the planets | about fractions | for a history class | that teaches spelling",
        ),
        acts("an example | a definition | an explanation", "of a metaphor | of inflation | of gravity | of democracy"),
    ),
    "lists": (
        acts(
            "a list | a table | a short list | a ranking",
            "of healthy snacks | of board games for families | of countries in Africa | of hobbies for rainy days"
            " | of questions for a job interview | of musical instruments | of famous scientists | of ways to relax",
        ),
    ),
    "messages": (
        acts(
            "a message | a card | a compliment",
            "that cheers up a classmate | for a colleague who is ill | for my ex-wife's birthday | for a new mother",
        ),
    ),
    "humour": (
        acts(
            "a joke | a comic strip | a funny speech",
            "about cats | about mathematicians | about camping in the rain | about a penguin and a fridge",
        ),
    ),
    "reviews": (
        acts(
            "a review | a description | a rating",
            "of a restaurant by the sea | of a novel about ships | of a quiet hotel | of a pair of running shoes",
        ),
    ),
    "film": (
        acts(
            "a video idea | a film plot | a guide | a post",
            "in which animals are rescued | about feeding garden birds | that makes cycling look beautiful | on knots",
        ),
    ),
    "forms": (
        acts(
            "a survey | a form | a sign | a set of rules",
            "for guests of a hotel | for a library | for new members of a choir | for a shared kitchen",
        ),
    ),
}
"""By topic, what somebody asks to have written: a kind of text and what it is to do."""
