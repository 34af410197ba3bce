# Kept in the shape that makemigrations gives it.
# ruff: noqa: I001, RUF012

import django.contrib.postgres.fields
import django.db.models.deletion
import django.db.models.functions.text
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Case",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("label", models.CharField(max_length=50, unique=True)),
                (
                    "place",
                    models.PositiveSmallIntegerField(
                        blank=True,
                        db_comment="NULL while no place is assigned",
                        null=True,
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("open", "Open"),
                            ("closed", "Closed"),
                        ],
                        default="waiting",
                        max_length=10,
                    ),
                ),
                ("needs", models.JSONField(default=dict)),
                ("opened_at", models.DateTimeField()),
                (
                    "continues",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        to="aidscope.case",
                    ),
                ),
            ],
            options={
                "required_db_features": ("supports_comments",),
            },
        ),
        migrations.CreateModel(
            name="Shelter",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("places", models.PositiveSmallIntegerField()),
                (
                    "languages",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=35),
                        default=list,
                        size=None,
                    ),
                ),
                (
                    "overflow",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        to="aidscope.shelter",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("cost", models.DecimalField(decimal_places=2, max_digits=10)),
                ("delivered_at", models.DateTimeField()),
                (
                    "receipt",
                    models.BinaryField(
                        blank=True, db_comment="The scanned slip", null=True
                    ),
                ),
                ("cases", models.ManyToManyField(to="aidscope.case")),
                (
                    "shelter",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        to="aidscope.shelter",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "required_db_features": ("supports_comments",),
            },
        ),
        migrations.AddField(
            model_name="case",
            name="shelter",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, to="aidscope.shelter"
            ),
        ),
        migrations.AddIndex(
            model_name="shelter",
            index=models.Index(
                django.db.models.functions.text.Lower("name"), name="shelter_lower_name"
            ),
        ),
        migrations.AddIndex(
            model_name="case",
            index=models.Index(
                condition=models.Q(("status__in", ["waiting", "open"])),
                fields=["opened_at"],
                name="case_unfinished",
            ),
        ),
        migrations.AddConstraint(
            model_name="case",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", ["waiting", "open", "closed"])),
                name="case_status_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="case",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "open")),
                fields=("shelter", "place"),
                name="case_one_open_per_place",
            ),
        ),
    ]
