"""How models write the letter of a choice: forms with {L} for the letter, {l} for a small one and {T} for its text."""

CHOICES = ("a dog", "a cat", "a cow", "none of these")

FORMS = (
    *("{L}", "{l}", " {L}", "{L}.", "{L})", "({L})", "({l})", "[{L}]", "{L}:", '"{L}"', "'{L}'", "{L}\n", "{L}!"),
    *("**{L}**", "*{L}*", "__{L}__", "`{L}`", "**({L})**", "**{L}.**", "${L}$", "\\boxed{{{L}}}", "$\\boxed{{{L}}}$"),
    *("\\boxed{{\\text{{{L}}}}}", "<answer>{L}</answer>", "<answer> {L} </answer>", "- {L}", "# {L}", "> {L}"),
    *("{L}. {T}", "{L}) {T}", "({L}) {T}", "{L}: {T}", "{L} - {T}", "{L} {T}", "**{L}. {T}**", "**{L}** {T}"),
    *("{L}, {T}", "{l}. {T}", "{L} ({T})", "({L}): {T}", "{L}. {T}.", "{L}\n{T}"),
    *("Option {L}", "option {L}", "Option {L}.", "Option ({L})", "Option: {L}", "**Option {L}**", "Option {L}: {T}"),
    *("Choice {L}", "Letter {L}", "The letter is {L}", "Answer {L}", "Answer ({L})", "OPTION {L}", "option {l}"),
    *("Answer: {L}", "answer: {l}", "ANSWER: {L}", "Answer: ({L})", "Answer: {L}.", "Answer: {L}. {T}", "Answer:\n{L}"),
    *(
        "**Answer:** {L}",
        "**Answer: {L}**",
        "Answer: **{L}**",
        "Answer - {L}",
        "Answer = {L}",
        "Ans: {L}",
        "Answer\n{L}",
    ),
    *("### Answer\n{L}", "[Answer] {L}", "Final answer: {L}", "Final Answer: ({L})", "Correct answer: {L}", "A: {L}"),
    *("Correct option: {L}", '{{"answer": "{L}"}}', "The final answer is $\\boxed{{{L}}}$.", "Selected option: {L}"),
    *(
        "The answer is {L}",
        "The answer is {L}.",
        "The answer is ({L}).",
        "The answer is **{L}**.",
        'The answer is "{L}".',
    ),
    *(
        "The answer is: {L}",
        "the answer is {l}.",
        "The answer is option {L}.",
        "The answer is {L}. {T}.",
        "Answer is {L}",
    ),
    *(
        "The answer is option ({L}).",
        "The answer is {L}, {T}.",
        "The answer would be {L}.",
        "The answer should be {L}.",
    ),
    *("The correct answer is {L}.", "The correct answer is option {L}: {T}.", "The best answer is {L}.", "It's {L}."),
    *("The correct option is {L}.", "The correct choice is ({L}).", "The right answer is {L}.", "My answer is {L}."),
    *("The answer to the question is {L}.", "So the answer is {L}.", "Therefore, the answer is {L}.", "Thus, {L}."),
    *(
        "Based on the image, the answer is {L}.",
        "Sure, the answer is {L}.",
        "Sure! {L}",
        "I think it is {L}.",
        "It is {L}.",
    ),
    *("I choose {L}.", "I would choose option {L}.", "I pick {L}.", "I select {L}.", "I'd go with {L}.", "It's ({L})."),
    *("{L} is correct", "{L} is correct.", "{L} is the correct answer.", "{L} is the answer.", "{L} is right."),
    *(
        "({L}) is correct.",
        "Option {L} is correct.",
        "Option {L} is the best choice.",
        "Hence {L} is correct.",
        "Choose {L}.",
    ),
    *("{L}\n\nThe picture shows it in the middle.", "{L}\nExplanation: it has four legs.", "{L}. It is not {O}."),
    *(
        "{L}\nIt is not {O}",
        "{L} because it has four legs.",
        "{L}, because it is not {O}.",
        "({L}) as seen on the left.",
    ),
    *(
        "It looks like {O}, but the answer is {L}.",
        "{O} and {P} are wrong.\nAnswer: {L}",
        "First {O}. The answer is {L}.",
    ),
    *("(A) is a dog, (B) is a cat, (C) is a cow. The answer is ({L}).", "Not {O}. The answer is {L}.", "Probably {L}."),
)
"""{O} and {P} are the texts of other choices."""

TEXTS = (
    ("a dog", CHOICES, "A"),
    ("A cat.", CHOICES, "B"),
    ("It is a cow.", CHOICES, "C"),
    ("The answer is a cat.", CHOICES, "B"),
    ("The answer is A cat", CHOICES, "B"),
    ("None of these", CHOICES, "D"),
    ("**a cat**", CHOICES, "B"),
    ("Answer: a cow", CHOICES, "C"),
    ("dark red", ("red", "dark red", "blue"), "B"),
    ("It is dark red.", ("red", "dark red", "blue"), "B"),
    ("3", ("13", "3", "30"), "B"),
    ("There are 13 birds.", ("3", "13", "30"), "B"),
    ("1.5", ("1", "1.5", "5"), "B"),
    ("The value is -5.", ("5", "-5", "0"), "B"),
    ("50%", ("50", "50%", "5"), "B"),
    ("1,000", ("1", "000", "1,000"), "C"),
    ("Yes.", ("Yes", "No"), "A"),
    ("No, it is not.", ("Yes", "No"), "B"),
    ("vitamin C", ("vitamin A", "vitamin C", "vitamin D"), "B"),
    ("It shows vitamin C.", ("vitamin A", "vitamin C", "vitamin D"), "B"),
    ("The answer is Plan B.", ("Plan B", "Plan C", "Plan A"), "A"),
    ("St. Louis", ("Paris", "St. Louis", "Rome"), "B"),
    ("$5", ("$15", "$5", "$50"), "B"),
    ("U.S.A.", ("U.K.", "U.S.A."), "B"),
    ("both A and B", ("red", "blue", "both A and B"), "C"),
    ("(2, 3)", ("(3, 2)", "(2, 3)"), "B"),
)

UNREAD = (
    *("", "E", "I don't know.", "A bird", "A bird sits on a branch.", "A or B", "Both A and B", "A, B and C", "A/B"),
    *(
        "It is either B or C.",
        "a dog or a cat",
        "It is not a dog.",
        "The answer is not B.",
        "There is no answer.",
        "...",
    ),
    *("A dog and a cat are in the picture.", "A. a dog\nB. a cat\nC. a cow\nD. none of these", "None", "I see a bird."),
    *("Sorry, I can't help with that.", "The animal is big.", "B is wrong.", "A: a dog, B: a cat", "Which one?"),
)
"""Texts that name none of `CHOICES`, or several."""

LATER_FORMS = (
    *("The answer is**{L}**", "{{'answer': '{L}'}}", "{L}, {L}", "{L}\n\nQuestion: And here?\nAnswer: none of them"),
    *("I don't think the answer is {O}. The answer is {L}.", "\\boxed{{\\textbf{{{L}}}}}", "<answer>\n{L}\n</answer>"),
    *("There is no doubt that {L} fits", "I have no doubt that the answer is ({L})", "There's no doubt it's {L}."),
    *("No doubt {L}.", "Without a doubt, {L}.", "There is no doubt that it is {T}."),
    *("It has legs.\n\nQuestion: What animal?\n\nAnswer: {L}", "Step 1.\nQuestion: x\n\\boxed{{{L}}}"),
    *("...\nUser: which?\n<answer>{L}</answer>",),
)

LATER_TEXTS = (
    ("2\\sqrt{3}", ("3", "2 \\sqrt { 3 }", "4"), "B"),
    ("$\\boxed{\\frac{1}{2}}$", ("1", "\\frac { 1 } { 2 }", "2"), "B"),
    ("It is 3cm long.", ("30 cm", "3 cm", "3 m"), "B"),
    ("a  cat", CHOICES, "B"),
    ("x", ("X", "x", "y"), "B"),
    ("(A) B", ("B", "C", "A"), "A"),
    ("We compute 8 - 3.", ("-3", "5"), ""),
    ("y = 2x - 4", ("-4", "4"), "B"),
    ("from 10 - 20", ("-20", "20"), "B"),
    ("The result is 3 - 5 = -2", ("-5", "-2"), "B"),
    ("x + 5 = 10 so x = 5", ("+5", "5"), "B"),
    ("x = 2 . 5", ("2.5", ".5"), ""),
    ("The value is .5 here", (".5", "5"), "A"),
    ("We get x - 3 here", ("x-3", "x-4"), "A"),
    ("It is 5 - 3 here", ("5 - 3", "4"), "A"),
    ("The point is (2, 3).", ("(3, 2)", "(2, 3)"), "B"),
    ("He is sad because he is tired.", ("He is tired.", "He is sad."), ""),
)

LATER_UNREAD = (
    *("A; B", "A\nB", "(A)(C)", "A B", "Answer: A B", "A = B", "A? No. B? Yes.", "The answer is A, B, or C", "N/A"),
    *("I think A. Actually, B.", "I don't think it's C.", "I don't think the answer is C.", "The answer cannot be C."),
    *("I doubt it is C", "unlikely B", "I doubt it's B", "I doubt that the answer is (B)"),
)
"""The same as the three above; the answers that `fixtures/mmmu.json` is the record of don't have them."""

CJK_FORMS = (
    *("答案是{L}", "选{L}。", "答案\uff1a{L}", "正确答案是{L}。", "答案为{L}", "我选{L}"),
    *("故选{L}", "应该选{L}", "{L}选项", "选项{L}", "{L}项正确", "选项{L}正确。", "{L}是正确的"),
    *("所以答案是{L}\uff0c因为有四条腿。", "\uff08{L}\uff09", "答案是\uff08{L}\uff09", "【{L}】", "{L}。", "{L}、猫"),
    *("我认为是{L}", "应该是{L}", "正确选项为{L}", "选择{L}", "答案选{L}", "因此选{L}", "答案{L}"),
    *("正解は{L}です", "{L}が正解です", "{L}でございます", "{L}가 정답입니다", "{L}번이 맞습니다"),
    *("答えは{L}です", "정답은 {L}입니다", "{L}\uff0c因为它有腿", "**答案\uff1a{L}**", "根据图片\uff0c答案是{L}"),
)
"""Forms in Chinese, Japanese and Korean, which write no space beside a letter."""

CJK_UNREAD = (
    *("不选B", "答案不是B", "不应选B", "如果选B", "选A还是B", "A和B正确", "B不正确", "B是错误的"),
    *("选B吗\uff1f", "A或B", "图中B处有一只鸟", "角B是直角", "选项A是狗\uff0c选项B是猫", "A是狗\uff0cB是猫"),
    *("排除B", "我不认为是B", "不要选B", "维生素C"),
    *("A是正确的吗\uff1f", "A是正确答案吗\uff1f", "A对吗", "答えはAでしょうか。", "정답은 A인가요?"),
    *("Aではありません", "Aは正解ではない", "Aは間違いです", "答えはAではありません", "Aは違います", "不正解はAです"),
    *("A가 아닙니다", "A는 정답이 아닙니다", "정답은 A가 아닙니다", "A는 틀렸습니다", "A는 옳지 않습니다"),
    *("B도 A도 아닙니다", "答えはAかBです", "답은 A 또는 B입니다"),
)
"""The same that deny the letter, ask, join several, or have it in a name."""

NAMES_UNREAD = (
    *(
        "Angle B is right",
        "In triangle ABC, angle B is 90",
        "angle (B) is right",
        "Vitamin C is the best match",
        "team B",
    ),
    *("Point A lies on line B", "The triangle is right at angle B", "hepatitis B", "Side C is the longest."),
    *("If the answer is A, then it flies.", "If B is correct, the dog flies.", "Let me see if B is correct."),
    *("Assume the answer is A", "whether A is right", "Unless the answer is C", "Either A or B is correct."),
)
"""A letter in the name of something else, and one in a condition."""

SUPPOSED_TEXTS = (
    ("If I had to guess, it's B.", CHOICES, "B"),
    ("If it has legs then the answer is B.", CHOICES, "B"),
    ("Suppose it is A. The answer is B.", CHOICES, "B"),
    ("the answer is B if it is a cat", CHOICES, "B"),
    ("Image B is correct", CHOICES, "B"),
    ("It must be B", CHOICES, "B"),
    ("I can't tell if it is a dog but the answer is B", CHOICES, "B"),
    ("It looks like a dog, though whether it barks is unclear so my answer is B", CHOICES, "B"),
    ("whether it is a dog or not so B", CHOICES, "B"),
    ("Whether it flies is unclear, but if so it's a dog.", CHOICES, "A"),
    ("Unless it is so big that B is correct", CHOICES, ""),
    ("a dog. I vote for B.", CHOICES, "B"),
    ("It looks like a dog. My bet is for B.", CHOICES, ""),
    ("It looks like a dog if the answer is B.", CHOICES, ""),
    ("If you look at the image the answer is B", CHOICES, "B"),
    ("If I had to guess it's B", CHOICES, "B"),
    ("Team B has a dog with brown fur and long legs.", CHOICES, "A"),
    ("答案是一只猫。", ("一只狗", "一只猫", "一头牛"), "B"),
    ("A正确吗\uff1f不\uff0cB才对", CHOICES, "B"),
    ("答案是A吗\uff1f不是\uff0c选B", CHOICES, "B"),
    ("答えはAではなくBです", CHOICES, "B"),
    ("Aじゃなくて、Bだと思います", CHOICES, "B"),
    ("정답은 A가 아니라 B입니다", CHOICES, "B"),
    ("정답은 A번이 아니라 B번입니다", CHOICES, "B"),
    ("A는 틀렸습니다. B가 정답입니다.", CHOICES, "B"),
    ("选B一只猫", ("一只狗", "一只猫", "一头牛"), "B"),
)
