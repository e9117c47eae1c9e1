"""Templates of C functions that do not sort, for `c_functions`; the placeholders are those of `c_sorts`."""

from typing import NamedTuple


class Template(NamedTuple):
    """A function, what it does, the names that it may have, and a call of it in `main`."""

    summary: str
    names: tuple[str, ...]
    body: str
    call: str


OTHERS: tuple[Template, ...] = (
    Template(
        "Returns the index of $x in $a, or -1 if it is not there.",
        ("linear_search", "find", "index_of", "find_value"),
        """
$I $f(const $T $a[], $I $n, $T $x) {
    for ($I $i = 0; $i < $n; $i++) {
        if ($a[$i] == $x) {
            return $i;
        }
    }
    return -1;
}
""",
        '$T $a[] = {4, 8, 15, 16, 23, 42};\nprintf("%d\\n", (int)$f($a, 6, 15));',
    ),
    Template(
        "Binary search in a sorted array: index of $x, or -1.",
        ("binary_search", "bsearch_index", "find_sorted", "lookup"),
        """
$I $f(const $T *$a, $I $n, $T $x) {
    $I low = 0;
    $I high = $n - 1;
    while (low <= high) {
        //~ halve what is left
        $I mid = low + (high - low) / 2;
        if ($a[mid] == $x) {
            return mid;
        }
        if ($a[mid] < $x) {
            low = mid + 1;
        } else {
            high = mid - 1;
        }
    }
    return -1;
}
""",
        '$T $a[] = {1, 3, 5, 7, 9};\nprintf("%d\\n", (int)$f($a, 5, 7));',
    ),
    Template(
        "First place in a sorted array whose element is not less than $x.",
        ("lower_bound", "first_not_less", "insert_position"),
        """
$I $f(const $T $a[], $I $n, $T $x) {
    $I first = 0;
    while ($n > 0) {
        $I half = $n / 2;
        if ($a[first + half] < $x) {
            first += half + 1;
            $n -= half + 1;
        } else {
            $n = half;
        }
    }
    return first;
}
""",
        '$T $a[] = {2, 4, 4, 6};\nprintf("%d\\n", (int)$f($a, 4, 5));',
    ),
    Template(
        "Largest element of a non-empty array.",
        ("maximum", "array_max", "max_value", "largest"),
        """
$T $f(const $T $a[], $I $n) {
    $T best = $a[0];
    for ($I $i = 1; $i < $n; $i++) {
        if ($a[$i] > best) {
            best = $a[$i];
        }
    }
    return best;
}
""",
        '$T $a[] = {3, 9, 2};\nprintf("%d\\n", (int)$f($a, 3));',
    ),
    Template(
        "Sum of the $n elements of $a.",
        ("sum", "array_sum", "total", "add_all"),
        """
$T $f(const $T *$a, $I $n) {
    $T result = 0;
    while ($n-- > 0) {
        result += *$a++;
    }
    return result;
}
""",
        '$T $a[] = {1, 2, 3, 4};\nprintf("%d\\n", (int)$f($a, 4));',
    ),
    Template(
        "Reverses the array in place.",
        ("reverse", "reverse_array", "flip_array"),
        """
void $f($T $a[], $I $n) {
    for ($I $i = 0, $j = $n - 1; $i < $j; $i++, $j--) {
        SWAP($a[$i], $a[$j]);
    }
}
""",
        '$T $a[] = {1, 2, 3};\n$f($a, 3);\nprintf("%d\\n", (int)$a[0]);',
    ),
    Template(
        "Tells whether the array is in ascending order.",
        ("is_sorted", "in_order", "check_sorted"),
        """
int $f(const $T $a[], $I $n) {
    for ($I $i = 1; $i < $n; $i++) {
        if ($a[$i - 1] > $a[$i]) {
            return 0;
        }
    }
    return 1;
}
""",
        '$T $a[] = {1, 2, 3};\nprintf("%d\\n", $f($a, 3));',
    ),
    Template(
        "Length of a string, without its closing zero.",
        ("string_length", "str_len", "my_strlen", "length"),
        """
size_t $f(const char *s) {
    const char *end = s;
    while (*end != '\\0') {
        end++;
    }
    return (size_t)(end - s);
}
""",
        'printf("%zu\\n", $f("hello"));',
    ),
    Template(
        "Reverses a string in place.",
        ("reverse_string", "str_reverse", "strrev_in_place"),
        """
void $f(char *s) {
    size_t left = 0;
    size_t right = strlen(s);
    while (left + 1 < right) {
        right--;
        char c = s[left];
        s[left] = s[right];
        s[right] = c;
        left++;
    }
}
""",
        'char s[] = "stressed";\n$f(s);\nputs(s);',
    ),
    Template(
        "Tells whether a string reads the same both ways.",
        ("is_palindrome", "palindrome", "same_both_ways"),
        """
int $f(const char *s) {
    size_t $i = 0;
    size_t $j = strlen(s);
    while ($i + 1 < $j) {
        if (s[$i++] != s[--$j]) {
            return 0;
        }
    }
    return 1;
}
""",
        'printf("%d\\n", $f("level"));',
    ),
    Template(
        "Reads a decimal number with an optional sign.",
        ("parse_int", "string_to_int", "to_number"),
        """
int $f(const char *s) {
    int sign = 1;
    int value = 0;
    if (*s == '-' || *s == '+') {
        sign = *s++ == '-' ? -1 : 1;
    }
    //~ stop at the first character that is no digit
    while (*s >= '0' && *s <= '9') {
        value = 10 * value + (*s++ - '0');
    }
    return sign * value;
}
""",
        'printf("%d\\n", $f("-273"));',
    ),
    Template(
        "Greatest common divisor (Euclid).",
        ("gcd", "greatest_common_divisor", "euclid"),
        """
int $f(int u, int v) {
    while (v != 0) {
        int rest = u % v;
        u = v;
        v = rest;
    }
    return u;
}
""",
        'printf("%d\\n", $f(48, 36));',
    ),
    Template(
        "Raises a base to a power by squaring.",
        ("power", "int_pow", "fast_power"),
        """
long $f(long base, unsigned exponent) {
    long result = 1;
    while (exponent > 0) {
        if (exponent & 1) {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    return result;
}
""",
        'printf("%ld\\n", $f(3, 13));',
    ),
    Template(
        "Tells whether a number is prime, by trial division.",
        ("is_prime", "prime", "check_prime"),
        """
int $f(unsigned number) {
    if (number < 2) {
        return 0;
    }
    for (unsigned $i = 2; $i <= number / $i; $i++) {
        if (number % $i == 0) {
            return 0;
        }
    }
    return 1;
}
""",
        'printf("%d\\n", $f(97));',
    ),
    Template(
        "The n-th Fibonacci number.",
        ("fibonacci", "fib", "nth_fibonacci"),
        """
unsigned long $f(int index) {
    unsigned long previous = 0;
    unsigned long current = 1;
    for (int $i = 0; $i < index; $i++) {
        unsigned long next = previous + current;
        previous = current;
        current = next;
    }
    return previous;
}
""",
        'printf("%lu\\n", $f(30));',
    ),
    Template(
        "Number of bits that are set.",
        ("count_bits", "popcount", "bits_set"),
        """
int $f(unsigned word) {
    int count = 0;
    while (word) {
        //~ clear the lowest bit that is set
        word &= word - 1;
        count++;
    }
    return count;
}
""",
        'printf("%d\\n", $f(0xf0u));',
    ),
    Template(
        "Area of a rectangle given by two of its corners.",
        ("rectangle_area", "area", "box_area"),
        """
struct point {
    $T x;
    $T y;
};

$T $f(struct point first, struct point second) {
    $T width = first.x < second.x ? second.x - first.x : first.x - second.x;
    $T height = first.y < second.y ? second.y - first.y : first.y - second.y;
    return width * height;
}
""",
        'struct point p = {1, 2}, q = {4, 6};\nprintf("%d\\n", (int)$f(p, q));',
    ),
    Template(
        "Puts a value at the front of a linked list and returns the new head.",
        ("push_front", "list_push", "prepend"),
        """
struct node {
    $T value;
    struct node *next;
};

struct node *$f(struct node *head, $T $x) {
    struct node *fresh = malloc(sizeof *fresh);
    if (fresh == NULL) {
        return head;
    }
    fresh->value = $x;
    fresh->next = head;
    return fresh;
}
""",
        'struct node *list = $f($f(NULL, 1), 2);\nprintf("%d\\n", (int)list->value);',
    ),
    Template(
        "Pushes a value on a stack of fixed size; returns 0 when it is full.",
        ("stack_push", "push", "push_value"),
        """
enum { CAPACITY = 16 };

struct stack {
    $T items[CAPACITY];
    int size;
};

int $f(struct stack *stack, $T $x) {
    if (stack->size == CAPACITY) {
        return 0;
    }
    stack->items[stack->size++] = $x;
    return 1;
}
""",
        'struct stack stack = {{0}, 0};\nprintf("%d\\n", $f(&stack, 7));',
    ),
)
