#!/usr/bin/env perl
# Writes security/authz/cedar/unicode_scripts.inc from the Unicode tables that come with Perl:
#
#   tools/unicode_scripts.pl > security/authz/cedar/unicode_scripts.inc
use strict;
use warnings;
use Unicode::UCD qw(prop_invlist prop_invmap);

my ($starts, $values, undef, undef) = prop_invmap("Script_Extensions");
my @allowed = prop_invlist("Identifier_Status=Allowed");    # begins, ends, begins …

# As UTS #39 augments them: a text in Han and kana is Japanese, and so on.
my %augmented = (Han => ["Hanb", "Jpan", "Kore"], Hiragana => ["Jpan"], Katakana => ["Jpan"], Hangul => ["Kore"], Bopomofo => ["Hanb"]);
my (%number, @sets, %set_number);
sub number { my $name = shift; return $number{$name} //= keys %number }
sub set_of {
  my @names = ref $_[0] ? @{$_[0]} : split / /, $_[0];
  my @words = (0, 0, 0);
  if ($names[0] eq "Common" || $names[0] eq "Inherited") {
    @words = (~0, ~0, ~0);
  } elsif ($names[0] ne "Unknown") {
    for my $name (map { ($_, @{$augmented{$_} // []}) } @names) {
      my $n = number($name);
      die "more than 192 scripts" if $n >= 192;
      $words[$n >> 6] |= 1 << ($n & 63);
    }
  }
  my $text = "{" . join(", ", map { $_ ? sprintf("0x%x", $_) : "0" } @words) . "}";
  return $set_number{$text} //= do { push @sets, $text; $#sets };
}

# Joiners cannot be seen: from 15.1 on Unicode keeps them out too.
my ($joiners, $after_joiners) = (0x200c, 0x200e);
my %begins = map { $_ => 1 } $joiners, $after_joiners, @$starts, grep { $_ <= 0x10ffff } @allowed;
my ($script, $is_allowed, @entries) = (-1, 0);
my $before = -1;
for my $begin (sort { $a <=> $b } keys %begins) {
  ++$script while $script < $#$starts && $starts->[$script + 1] <= $begin;
  $is_allowed = (grep { $_ <= $begin } @allowed) % 2 && !($begin >= $joiners && $begin < $after_joiners) ? 1 : 0;
  my $what = set_of($values->[$script]) << 1 | $is_allowed;
  next if $what == $before;
  push @entries, sprintf("0x%x", $begin << 11 | $what);
  $before = $what;
}
die "more than 1024 sets" if @sets > 1024;

sub lines { my ($text, @parts) = ("", @_); my $line = "   ";
  for my $part (@parts) {
    if (length("$line $part,") > 120) { $text .= "$line\n"; $line = "   " }
    $line .= " $part,";
  }
  return "$text$line\n";
}
print "// Made by tools/unicode_scripts.pl from Unicode ", Unicode::UCD::UnicodeVersion(), ".\n";
print "constexpr ScriptSet script_sets[] = {\n", lines(@sets), "};\n";
print "constexpr std::uint32_t script_ranges[] = {\n", lines(@entries), "};\n";
