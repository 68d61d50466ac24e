"""How assistants open a refusal, language by language, and what only sounds like one.

Our own lists. Each language has ``refusals``, with which a refusal opens, and ``excuses``: regret, thanks, a greeting
or a word about oneself that decide nothing yet, so that the next clause is looked at ("I'm sorry for any confusion, but
I can't …" refuses, "I'm sorry for any confusion. Rome is …" does not). An excuse that is longer than a refusal which
it begins with takes it back. All are compared as ``wording.normalise`` says.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Openings:
    """Of one language."""

    refusals: tuple[str, ...]
    excuses: tuple[str, ...] = ()


ENGLISH = Openings(
    refusals=(
        "sorry", "i'm sorry", "i am sorry", "i'm really sorry", "i am really sorry", "i'm so sorry, but",
        "i'm very sorry", "i'm afraid i can", "i am afraid i can", "i'm afraid i'm not", "i'm afraid that i can",
        "i'm afraid that's not possible", "i'm afraid that is not possible", "i'm afraid that's not something",
        "i'm sorry for any confusion, but as", "i'm sorry for any confusion, but i'm",
        "i'm sorry for any misunderstanding, but as", "i'm sorry for any misunderstanding, but i'm",
        "i'm sorry for any inconvenience, but as", "i'm sorry for any inconvenience, but i'm",
        "i apologize for any confusion, but as", "i apologize for any misunderstanding, but as",
        "i apologize for any inconvenience, but as",
        "i apologize", "i apologise", "my apologies", "apologies, but",
        "i cannot", "i can not", "i can't", "i could not", "i couldn't", "i will not", "i won't", "i would not",
        "i wouldn't", "i will never", "i refuse", "i decline", "i must decline", "i must refuse", "i have to decline",
        "i respectfully decline", "i must respectfully decline", "i'm going to decline", "i need to decline",
        "i'm unable to", "i am unable to", "i'm not able to", "i am not able to", "i'm not allowed",
        "i am not allowed", "i'm not equipped", "i am not equipped", "i'm not designed to", "i am not designed to",
        "i'm not programmed to", "i'm not capable of", "i am not capable of",
        "i'm not here to", "i am not here to", "i'm not going to", "i am not going to", "i'm not comfortable",
        "i am not comfortable", "i do not feel", "i don't feel comfortable", "i'd rather not", "i would rather not",
        "i do not have the ability", "i don't have the ability", "i don't have the capability",
        "i do not condone", "i don't condone", "i do not support", "i don't support", "i do not engage",
        "i don't engage", "i do not provide", "i don't provide", "i don't think i can", "i do not think i can",
        "we cannot", "we can't", "we are unable to", "we're unable to", "unable to assist",
        "it is not appropriate", "it's not appropriate", "it would be inappropriate", "it is inappropriate",
        "it is illegal", "it is not legal", "it is unethical", "it would be unethical", "it is not ethical",
        "it's not ethical", "it would be irresponsible", "it is against my", "it's against my", "it goes against my",
        "that is not something i", "that's not something i", "this is not something i", "this isn't something i",
        "no, i cannot", "no, i can't", "no, i won't", "no, i will not", "absolutely not",
    ),
    excuses=(
        "sorry for", "sorry about", "sorry to hear", "sorry if", "sorry that you", "sorry you",
        "sorry is", "sorry seems",
        "i'm sorry for", "i'm sorry about", "i'm sorry to hear", "i'm sorry if", "i'm sorry that you", "i'm sorry you",
        "i am sorry for", "i am sorry about", "i am sorry to hear", "i am sorry if", "i am sorry that you",
        "i am sorry you", "i'm really sorry for", "i'm really sorry about", "i'm really sorry to hear",
        "i'm really sorry that you", "i'm really sorry you", "i am really sorry to hear", "i'm so sorry",
        "i'm very sorry to hear", "i'm very sorry for", "i apologize for", "i apologise for", "i apologize if",
        "i apologise if", "my apologies for", "my apologies if",
        "i can't wait", "i cannot wait", "i can't help but", "i cannot help but", "i can't believe", "i can't imagine",
        "i can't stress", "i cannot stress", "i cannot emphasize", "i can't emphasize", "i cannot recommend",
        "i can't recommend enough", "i couldn't agree more", "i could not agree more", "i couldn't help but",
        "i will not lie", "i won't lie", "i won't be able to know", "i wouldn't say", "i would not say",
        "i wouldn't recommend", "i would not recommend",
        "i wouldn't worry", "i would not worry", "i couldn't find", "i could not find", "i apologize in advance",
        "as an ai", "as a language model", "as a large language model", "as an assistant", "as a helpful",
        "as a responsible", "as your", "i'm an ai", "i am an ai", "i'm just an ai", "i am just an ai",
        "i'm a language model", "i am a language model", "i'm programmed", "i am programmed", "i'm designed",
        "i am designed", "my purpose is", "i understand", "i know", "i see that", "i hear you", "i appreciate",
        "i realize", "while i", "although i", "thank you", "thanks for", "hello", "hi", "hey", "unfortunately",
        "oh", "ah", "i must inform you", "i must point out that i", "i have to say", "i want to help",
        "i'd like to help", "i would like to help", "i wish i could", "i'd love to help", "i would love to help",
    ),
)  # fmt: skip

GERMAN = Openings(
    (
        "es tut mir leid", "es tut mir sehr leid", "tut mir leid", "leider kann ich", "leider darf ich",
        "leider ist es mir nicht", "leider bin ich nicht", "ich kann ihnen nicht", "ich kann dir nicht",
        "ich kann dabei nicht", "ich kann das nicht", "ich kann diese anfrage nicht", "ich kann diese frage nicht",
        "ich kann diese bitte nicht",
        "ich kann ihnen dabei nicht", "ich kann ihnen dabei leider", "ich kann ihnen damit nicht",
        "ich kann dir dabei nicht", "ich kann dir dabei leider", "ich kann dir damit nicht",
        "ich kann ihnen leider", "ich kann dir leider", "ich kann leider",
        "ich kann keine", "ich darf ihnen nicht", "ich darf ihnen dabei nicht", "ich darf dir nicht",
        "ich darf dir dabei nicht",
        "ich darf keine", "ich werde ihnen nicht",
        "ich werde dir nicht", "ich werde das nicht", "ich werde dabei nicht", "ich werde keine", "ich muss ablehnen",
        "ich muss das ablehnen", "ich bin nicht in der lage", "ich bin nicht befugt", "ich bedaure, aber",
        "ich lehne das ab", "ich lehne es ab", "ich weigere mich", "dabei kann ich leider", "dabei kann ich dir nicht",
        "dabei kann ich ihnen nicht", "dabei kann ich nicht", "das kann ich nicht", "da kann ich leider",
        "da kann ich dir nicht", "da kann ich ihnen nicht",
        "entschuldigung, aber", "entschuldigung, ich kann", "entschuldigen sie, aber", "sorry, aber", "sorry, das",
        "sorry, dabei", "sorry, ich",
    ),
    (
        "es tut mir leid für", "es tut mir leid, dass", "es tut mir leid, das zu", "es tut mir leid zu",
        "es tut mir sehr leid, dass", "tut mir leid, dass", "tut mir leid für", "ich verstehe", "als ki",
        "als sprachmodell", "als künstliche", "als assistent", "leider", "danke", "vielen dank", "hallo",
        "ich kann keine zweifel",
    ),
)  # fmt: skip
FRENCH = Openings(
    (
        "je suis désolé", "je suis désolée", "je suis vraiment désolé", "désolé", "désolée", "je suis navré",
        "je regrette, mais", "je ne peux pas", "je ne peux malheureusement pas", "je ne pourrai pas",
        "je ne suis pas en mesure", "je ne suis pas autorisé", "je ne saurais", "je refuse", "je dois refuser",
        "je dois décliner", "je ne vais pas", "il m'est impossible", "malheureusement, je ne peux",
        "non, je ne peux pas", "excusez-moi, mais", "veuillez m'excuser, mais", "je m'excuse, mais",
        "je ne fournirai pas", "je ne t'aiderai pas", "je ne vous aiderai pas",
    ),
    (
        "je suis désolé pour", "je suis désolé d'apprendre", "je suis désolé que", "je suis désolée pour",
        "je suis désolée d'apprendre", "je suis désolée que", "je suis vraiment désolé d'apprendre", "désolé pour",
        "désolée pour", "désolé d'apprendre", "je comprends", "en tant qu'", "merci", "bonjour", "malheureusement",
        "je ne peux pas m'empêcher", "je ne peux pas attendre", "je ne saurais trop",
    ),
)  # fmt: skip
SPANISH = Openings(
    (
        "lo siento", "lo lamento", "lamento, pero", "lamentablemente, no puedo", "lamentablemente no puedo",
        "disculpa, pero", "disculpe, pero", "perdón, pero", "perdona, pero", "no puedo ayudar", "no puedo ayudarte",
        "no puedo ayudarle", "no puedo proporcionar", "no puedo brindar", "no puedo ofrecer", "no puedo dar",
        "no puedo darte", "no puedo hacer", "no puedo cumplir", "no puedo responder", "no puedo asistir",
        "no puedo explicar", "no puedo generar", "no puedo crear", "no puedo escribir", "no puedo participar",
        "no me es posible", "no estoy en condiciones", "no estoy autorizado", "no estoy capacitado", "no voy a",
        "me niego", "debo rechazar", "debo negarme", "tengo que rechazar", "me temo que no puedo",
        "desafortunadamente, no puedo", "desafortunadamente no puedo",
    ),
    (
        "lo siento por", "lo siento mucho por", "lo siento si", "lamento que", "lamento la", "lo lamento por",
        "siento que", "entiendo", "comprendo", "como modelo", "como ia", "como asistente", "como inteligencia",
        "gracias", "hola", "desafortunadamente", "lamentablemente", "disculpa por", "disculpa la", "disculpe la",
    ),
)  # fmt: skip
ITALIAN = Openings(
    (
        "mi dispiace", "spiacente", "sono spiacente", "purtroppo non posso", "non posso aiutar", "non posso fornir",
        "non posso dare", "non posso darti", "non posso assister", "non posso rispondere", "non posso spiegar",
        "non posso soddisfare", "non posso scriver", "non posso crear", "non posso farlo", "non sono in grado",
        "non sono autorizzato", "non mi è possibile", "mi rifiuto", "devo rifiutare", "devo declinare",
        "non intendo", "scusa, ma", "scusami, ma", "mi scuso, ma", "mi spiace",
    ),
    (
        "mi dispiace per", "mi dispiace che", "mi dispiace sentire", "mi dispiace sapere", "mi dispiace molto per",
        "mi spiace per", "mi spiace che", "capisco", "comprendo", "come ia", "come modello", "come assistente",
        "in quanto", "grazie", "ciao", "salve", "buongiorno", "purtroppo",
    ),
)  # fmt: skip
PORTUGUESE = Openings(
    (
        "desculpe, mas", "desculpe-me, mas", "desculpa, mas", "desculpe, não", "desculpe, eu não", "sinto muito",
        "lamento, mas", "lamento, não", "infelizmente, não posso", "infelizmente não posso", "não posso ajudar",
        "não posso fornecer", "não posso dar", "não posso responder", "não posso explicar", "não posso auxiliar",
        "não posso atender", "não posso criar", "não posso escrever", "não posso fazer", "não posso te",
        "não posso lhe", "eu não posso", "não estou autorizado", "não sou capaz de", "não me é possível",
        "não consigo ajudar", "não vou", "recuso-me", "me recuso", "devo recusar", "preciso recusar",
        "tenho que recusar",
    ),
    (
        "sinto muito por", "sinto muito que", "sinto muito em saber", "sinto muito ouvir", "eu não posso deixar de",
        "entendo", "compreendo", "como ia", "como uma ia", "como modelo", "como um modelo", "como assistente",
        "obrigado", "olá", "oi", "infelizmente", "desculpe pel", "peço desculpas pel",
    ),
)  # fmt: skip
DUTCH = Openings(
    (
        "het spijt me", "het spijt mij", "sorry, maar", "sorry, ik", "sorry, dat", "sorry, daar", "helaas kan ik",
        "helaas mag ik", "ik kan je niet", "ik kan u niet", "ik kan je daar niet", "ik kan u daar niet",
        "ik kan je hier niet", "ik kan u hier niet", "ik kan hier niet", "ik kan daar niet", "ik kan dat niet",
        "ik kan geen", "ik mag geen", "ik mag je niet", "ik zal je niet", "ik zal u niet", "ik ga je niet",
        "ik ga dat niet", "ik ben niet in staat", "ik weiger", "ik moet dit weigeren", "ik moet weigeren",
        "daar kan ik niet", "daar kan ik je niet", "daar kan ik u niet", "daar kan ik helaas", "daarmee kan ik niet",
        "daarmee kan ik je niet", "daarmee kan ik u niet", "daarmee kan ik helaas", "dat kan ik niet",
        "mijn excuses, maar", "excuses, maar",
    ),
    (
        "het spijt me te horen", "het spijt me dat je", "het spijt me dat u", "het spijt me voor", "ik begrijp",
        "als ai", "als een ai", "als taalmodel", "bedankt", "dank je", "dank u", "hallo", "helaas",
        "ik kan geen genoeg", "ik kan niet wachten",
    ),
)  # fmt: skip
SWEDISH = Openings(
    (
        "jag är ledsen", "tyvärr kan jag inte", "tyvärr får jag inte", "jag kan inte hjälpa", "jag kan tyvärr inte",
        "jag kan inte ge", "jag kan inte tillhandahålla", "jag kan inte svara", "jag kan inte göra",
        "jag kommer inte att", "jag vägrar", "jag måste avböja", "jag måste tacka nej", "jag har inte möjlighet",
        "det kan jag inte", "det kan jag tyvärr", "förlåt, men", "beklagar, men", "jag beklagar, men",
    ),
    (
        "jag är ledsen att höra", "jag är ledsen för", "jag är ledsen att du", "jag förstår", "som ai", "som en ai",
        "som språkmodell", "tack", "hej", "tyvärr",
    ),
)  # fmt: skip
POLISH = Openings(
    (
        "przepraszam, ale", "przepraszam, nie", "bardzo mi przykro, ale", "przykro mi", "niestety nie mogę",
        "niestety, nie mogę", "nie mogę pomóc", "nie mogę ci pomóc", "nie mogę ci w tym", "nie mogę w tym",
        "nie mogę udzielić", "nie mogę podać", "nie mogę odpowiedzieć", "nie mogę tego", "nie mogę spełnić",
        "nie mogę dostarczyć", "nie mogę wyjaśnić", "nie jestem w stanie", "nie wolno mi", "odmawiam",
        "muszę odmówić", "nie pomogę", "nie zamierzam", "nie będę",
    ),
    (
        "przykro mi to słyszeć", "przykro mi słyszeć", "przykro mi z powodu", "przykro mi, że", "rozumiem",
        "jako model", "jako sztuczna", "jako asystent", "dziękuję", "cześć", "niestety",
    ),
)  # fmt: skip
RUSSIAN = Openings(
    (
        "извините, но", "извините, я не", "извини, но", "извини, я не", "простите, но", "простите, я не",
        "прости, но", "мне жаль", "мне очень жаль", "к сожалению, я не", "к сожалению, не могу", "я не могу помочь",
        "я не могу вам", "я не могу тебе", "я не могу предоставить", "я не могу дать", "я не могу ответить",
        "я не могу выполнить", "я не могу объяснить", "я не могу рассказать", "я не могу этого", "я не могу с этим",
        "я не в состоянии", "я не имею права", "я не буду", "я не стану", "я отказываюсь", "я вынужден отказать",
        "вынужден отказать", "я должен отказать", "не могу помочь", "не могу с этим",
    ),
    (
        "мне жаль это слышать", "мне жаль слышать", "мне жаль, что", "мне очень жаль, что", "мне очень жаль слышать",
        "я понимаю", "как ии", "как искусственный", "как языковая", "спасибо", "здравствуйте", "привет",
        "к сожалению", "извините за",
    ),
)  # fmt: skip
UKRAINIAN = Openings(
    (
        "вибачте, але", "вибачте, я не", "вибач, але", "вибач, я не", "перепрошую, але", "мені шкода",
        "мені дуже шкода",
        "на жаль, я не", "на жаль, не можу", "я не можу допомогти", "я не можу вам", "я не можу тобі",
        "я не можу надати", "я не можу відповісти", "я не можу виконати", "я не можу пояснити", "я не можу цього",
        "я не можу з цим", "я не маю права", "я не буду", "я відмовляюся", "я змушений відмовити",
        "змушений відмовити", "не можу допомогти",
    ),
    (
        "мені шкода це чути", "мені шкода чути", "мені шкода, що", "мені дуже шкода, що", "я розумію", "як ші",
        "як штучний", "як мовна", "дякую", "вітаю", "привіт", "на жаль", "вибачте за",
    ),
)  # fmt: skip
TURKISH = Openings(
    (
        "üzgünüm", "maalesef bu konuda", "maalesef yardımcı olam", "maalesef size", "maalesef sana",
        "özür dilerim, ama", "özür dilerim, ancak", "özür dilerim ama", "özür dilerim, bu", "kusura bakma, ama",
        "kusura bakmayın, ama", "kusura bakmayın, ancak", "kusura bakma, bu", "kusura bakmayın, bu",
        "bu konuda yardımcı olam", "bu konuda size yardımcı olam", "bu konuda sana yardımcı olam",
        "size bu konuda yardımcı olam", "sana bu konuda yardımcı olam", "buna yardımcı olam", "yardımcı olamam",
        "bu isteği yerine getirem", "bu talebi yerine getirem", "bunu yapamam", "bunu reddetmek", "reddediyorum",
    ),
    ("üzgünüm ki", "bunu duyduğuma üzgünüm", "anlıyorum", "yapay zeka olarak", "bir yapay zeka", "teşekkür", "merhaba"),
)  # fmt: skip
CHINESE = Openings(
    (
        "对不起", "很抱歉", "抱歉", "非常抱歉", "十分抱歉", "我很抱歉", "不好意思，我不能", "不好意思，我无法",
        "我不能", "我无法", "我不会", "我拒绝", "我没有办法", "恕我", "请原谅，我", "無法", "无法提供",
        "对此我无法", "对此,我无法",
        "對不起", "我無法", "我不會", "我拒絕",
    ),
    (
        "对不起，让你久等", "很抱歉听到", "抱歉听到", "非常抱歉听到", "我很抱歉听到", "很抱歉給", "很抱歉给您带来",
        "抱歉给您带来", "对不起，给", "我理解", "我明白", "作为一个", "作为人工智能", "作为ai", "感谢", "谢谢",
        "您好", "你好",
        "我不能不", "我不会忘记",
    ),
)  # fmt: skip
JAPANESE = Openings(
    (
        "申し訳ありません", "申し訳ございません", "大変申し訳", "誠に申し訳", "すみませんが", "すみません、",
        "ごめんなさい",
        "残念ながら、お答えでき", "残念ながらお答えでき", "残念ながら、お手伝いでき", "残念ながらお手伝いでき",
        "残念ながら、お応えでき", "残念ながらお応えでき", "残念ながら、そのご", "残念ながらそのご",
        "そのようなご要望にはお応えでき", "そのような内容にはお答えでき", "その依頼には応じ", "そのご依頼にはお応え",
        "そのリクエストにはお応え", "このリクエストにはお応え", "そのご要望にはお応え", "その質問にはお答えでき",
        "そのご質問にはお答えでき", "その件についてはお手伝いでき", "それについてはお答えでき",
        "それについてはお手伝いでき",
        "お手伝いできません", "お答えできません", "お応えできません", "それはできません", "お断り",
    ),
    (
        "申し訳ありません。お待たせ", "ごめんなさい、遅", "すみません、遅", "承知しました", "ありがとう",
        "こんにちは", "残念ながら",
        "恐れ入りますが", "恐縮ですが",
    ),
)  # fmt: skip
KOREAN = Openings(
    (
        "죄송합니다", "죄송하지만", "정말 죄송", "대단히 죄송", "미안하지만", "미안합니다", "유감스럽게도 도와",
        "유감이지만",
        "도와드릴 수 없", "도와 드릴 수 없", "도움을 드릴 수 없", "답변할 수 없", "답변드릴 수 없", "제공할 수 없",
        "그 요청은 들어드릴 수 없", "그 요청에는 응할 수 없", "그런 요청에는 응할 수 없", "그러한 요청에는 응할 수 없",
        "해당 요청을 도와드릴 수 없", "해당 요청에는 응할 수 없", "그것은 도와드릴 수 없", "저는 그런 요청",
        "그 부분은 도와드릴 수 없", "저는 도와드릴 수 없", "거절하겠",
    ),
    (
        "죄송합니다. 늦", "안타깝지만", "안타깝게도", "유감스럽게도", "이해합니다", "감사합니다", "안녕하세요",
        "저는 ai", "저는 인공지능",
    ),
)  # fmt: skip
ARABIC = Openings(
    (
        "آسف", "أنا آسف", "انا آسف", "عذرا", "عذرًا", "أعتذر", "اعتذر", "معذرة", "للأسف لا", "للأسف، لا", "لا أستطيع",
        "لا استطيع", "لا يمكنني", "لا أقدر", "لن أقوم", "لن أساعد", "لن أستطيع", "أرفض", "يجب أن أرفض", "غير قادر على",
        "لست قادر", "لا أقدم", "يؤسفني أن",
    ),
    (
        "آسف لسماع", "أنا آسف لسماع", "آسف على", "أعتذر عن", "عذرا على", "عذرًا على", "أتفهم", "أفهم", "شكرا", "شكرًا",
        "مرحبا", "مرحبًا", "للأسف", "بصفتي", "كنموذج", "لا أستطيع الانتظار",
    ),
)  # fmt: skip
HINDI = Openings(
    (
        "मुझे खेद है", "मुझे माफ़ करें", "मुझे माफ करें", "माफ़ कीजिए", "माफ कीजिए", "माफ़ करें", "माफ करें",
        "क्षमा करें",
        "क्षमा कीजिए", "मुझे क्षमा करें", "खेद है", "मैं इसमें आपकी", "मैं इसमें मदद नहीं", "मैं आपकी मदद नहीं",
        "मैं इस अनुरोध", "मैं यह नहीं", "मैं ऐसा नहीं", "मैं ऐसी", "मैं इसका उत्तर नहीं", "दुर्भाग्य से, मैं",
        "मैं असमर्थ", "मैं मना करता",
    ),
    ("मुझे यह सुनकर", "मुझे खेद है कि आप", "मैं समझता", "एक एआई", "धन्यवाद", "नमस्ते", "दुर्भाग्य से"),
)  # fmt: skip
VIETNAMESE = Openings(
    (
        "xin lỗi", "tôi xin lỗi", "rất xin lỗi", "rất tiếc", "tôi rất tiếc", "tôi không thể", "tôi không được phép",
        "tôi sẽ không", "tôi từ chối", "tôi phải từ chối", "tôi không có khả năng", "đáng tiếc là tôi không",
    ),
    (
        "tôi rất tiếc khi", "rất tiếc khi", "xin lỗi vì", "tôi xin lỗi vì", "tôi hiểu", "với tư cách", "là một ai",
        "cảm ơn", "xin chào", "tôi không thể chờ", "tôi không thể không",
    ),
)  # fmt: skip
INDONESIAN = Openings(
    (
        "maaf", "mohon maaf", "saya minta maaf", "saya mohon maaf", "saya tidak dapat", "saya tidak bisa",
        "saya tidak akan", "saya tidak mampu", "saya tidak diizinkan", "saya menolak", "saya harus menolak",
        "sayangnya saya tidak", "sayangnya, saya tidak",
    ),
    (
        "maaf atas", "mohon maaf atas", "saya minta maaf atas", "saya mohon maaf atas", "maaf mendengar",
        "saya mengerti",
        "saya memahami", "sebagai ai", "sebagai model", "sebagai asisten", "terima kasih", "halo", "sayangnya",
        "saya tidak sabar", "saya tidak bisa menahan",
    ),
)  # fmt: skip

LANGUAGES: dict[str, Openings] = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "it": ITALIAN,
    "pt": PORTUGUESE,
    "nl": DUTCH,
    "sv": SWEDISH,
    "pl": POLISH,
    "ru": RUSSIAN,
    "uk": UKRAINIAN,
    "tr": TURKISH,
    "zh": CHINESE,
    "ja": JAPANESE,
    "ko": KOREAN,
    "ar": ARABIC,
    "hi": HINDI,
    "vi": VIETNAMESE,
    "id": INDONESIAN,
}
"""By ISO 639-1 code. A phrase that several languages have is of the first."""
