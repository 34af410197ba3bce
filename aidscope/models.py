"""The case work of an aid organisation: shelters, their cases and deliveries."""

import uuid

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Lower


class Status(models.TextChoices):
    """The stages of a case."""

    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"


class Shelter(models.Model):
    """A house with places, and the house that takes over when it is full."""

    name = models.CharField(max_length=100)
    places = models.PositiveSmallIntegerField()
    languages = ArrayField(models.CharField(max_length=35), default=list)
    overflow = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True
    )

    class Meta:
        indexes = (models.Index(Lower("name"), name="shelter_lower_name"),)

    def __str__(self) -> str:
        """Return the name."""
        return self.name


class Case(models.Model):
    """A request for help, which may continue an earlier one."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    label = models.CharField(max_length=50, unique=True)
    shelter = models.ForeignKey(Shelter, on_delete=models.PROTECT)
    place = models.PositiveSmallIntegerField(
        null=True, blank=True, db_comment="NULL while no place is assigned"
    )
    status = models.CharField(
        max_length=10, choices=Status.choices, default=Status.WAITING
    )
    needs = models.JSONField(default=dict)
    opened_at = models.DateTimeField()
    continues = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True
    )

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=models.Q(status__in=Status.values), name="case_status_known"
            ),
            models.UniqueConstraint(
                fields=["shelter", "place"],
                condition=models.Q(status=Status.OPEN),
                name="case_one_open_per_place",
            ),
        )
        indexes = (
            models.Index(
                fields=["opened_at"],
                condition=models.Q(status__in=[Status.WAITING, Status.OPEN]),
                name="case_unfinished",
            ),
        )
        # Keeps Django from warning about db_comment while no database is configured.
        required_db_features = ("supports_comments",)

    def __str__(self) -> str:
        """Return the label."""
        return self.label


class Delivery(models.Model):
    """Goods that reached a shelter for some of its cases."""

    shelter = models.ForeignKey(Shelter, on_delete=models.PROTECT)
    cases = models.ManyToManyField(Case)
    cost = models.DecimalField(max_digits=10, decimal_places=2)
    delivered_at = models.DateTimeField()
    receipt = models.BinaryField(null=True, blank=True, db_comment="The scanned slip")

    class Meta:
        required_db_features = ("supports_comments",)
        verbose_name_plural = "deliveries"

    def __str__(self) -> str:
        """Return the place and the day."""
        return f"{self.shelter}, {self.delivered_at:%Y-%m-%d}"
